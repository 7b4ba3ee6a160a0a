"""What every room stands on: errors, files, parameters, trial tables, contracts."""
