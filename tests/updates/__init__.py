"""`copier update` from every release, with and without a team's edits."""
