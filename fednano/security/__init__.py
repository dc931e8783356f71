"""Who is who: certificates, their authority, what was revoked, and what a caller proves of itself; without torch."""
