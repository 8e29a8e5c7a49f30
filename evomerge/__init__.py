"""evomerge: evolutionary search for merges of fine-tuned models.

The nouns, one room each: `Recipe` (recipe.py), search spaces (spaces/), controllers
(controllers/), `Fitness` (fitness.py), `Outcome` (recipe.py), `Archive` (archive.py) and
`Campaign` (campaign.py). Nothing heavy is imported here.
"""

__version__ = "0.1.0"
