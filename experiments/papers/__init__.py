"""What each paper reports, as runs of ours: rows, tables, figures and claims."""
