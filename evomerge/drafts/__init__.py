"""Campaign files that are written for the user: from another tool's, or from a few answers.

- `campaign_text`: a campaign's mapping as YAML with comments, and how it is written.
- `from_evolve`: a configuration of mergekit-evolve.
- `sources`, `tasks`, `advice`: what a first campaign is made of.
"""
