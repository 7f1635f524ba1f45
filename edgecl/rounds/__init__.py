"""Learning rounds from the state's side: job, worker, gate."""
