"""The ledger: every table and figure of the paper as rows that a command can run, and the page that tells them."""
