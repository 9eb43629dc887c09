"""Load models, and put MX formats in and take them out again."""
