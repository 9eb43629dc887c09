"""What runs leave behind, read back: records, tables and figures. Nothing here imports torch."""
