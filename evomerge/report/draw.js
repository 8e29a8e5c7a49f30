// Draws each picture when it comes near the window, and all of them for print.
"use strict";
(function () {
  // `ast`: expressions are interpreted, as the page's policy lets no text become code.
  const options = { mode: "vega", renderer: "svg", actions: false, ast: true };
  const waiting = new Set(document.querySelectorAll(".chart"));

  function draw(place) {
    if (!waiting.delete(place)) return Promise.resolve();
    const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
    return vegaEmbed(place, spec, options).then(function () {
      place.dataset.drawn = "";
      place.style.minHeight = "";
    });
  }

  const watcher = new IntersectionObserver(function (entries) {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "600px" });
  waiting.forEach((place) => watcher.observe(place));

  function drawAll() {
    return Promise.all([...waiting].map(draw));
  }
  window.addEventListener("beforeprint", drawAll);

  // While the search runs, the page is read again, and stays where it was.
  const seconds = Number(document.body.dataset.refresh);
  if (seconds > 0) {
    const key = "evomerge scroll";
    try {
      const kept = sessionStorage.getItem(key);
      if (kept !== null) window.scrollTo(0, Number(kept));
    } catch (error) { /* a browser that keeps nothing for files */ }
    window.setTimeout(function () {
      try {
        sessionStorage.setItem(key, String(window.scrollY));
      } catch (error) { /* as above */ }
      window.location.reload();
    }, 1000 * seconds);
  }
})();
