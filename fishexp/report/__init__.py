"""Tables and plots made of records; they need neither torch nor the runs themselves."""
