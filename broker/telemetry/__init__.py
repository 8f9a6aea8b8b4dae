"""What the broker tells other systems about its own work, beside metrics and logs."""
