"""Tables and plots out of records. Needs neither torch nor the runs themselves."""
