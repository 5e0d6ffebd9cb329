"""The procedures of `foveate evaluate`: flags in; a table, JSON and the result out."""
