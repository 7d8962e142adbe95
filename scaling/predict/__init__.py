"""What thinking costs on paper: shapes, FLOPs and bytes. Measures nothing."""
