"""The daily report: from the figures of a day to Markdown and JSON. Pure, like the core."""
