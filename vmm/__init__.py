"""One VM on one machine. Knows no Ray and no network of hosts."""
