"""A run as one HTML page with pictures, made of its archive alone.

report         the sections in their order, as a page, as a file, again and again
run            the archive, read once
figures        what sections are made of: text, tables, pictures, items
charts         how pictures look: colours, shapes, axes
page           sections as HTML, with `page.html`, `style.css` and `draw.js`

verdict        the best against sources, average and another search, by `paired`
state          how far it is
front          what trades one objective for another, by `front_choice`
convergence    how it came to its best
weights        what the best is made of, by `coefficients`; `routes`, `movement`
genes          where the best lie, and which genes matter, by `importance`
answers        who solves what; single items by `cases`
lineage        who descends from whom
failures, effort, provenance
"""
