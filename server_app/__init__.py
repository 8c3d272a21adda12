"""The server's side: census, strategy, evaluation, ledger, report."""
