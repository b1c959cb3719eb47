"""What guards app/database/. Set TEST_POSTGRES_URL to the address of an empty server's `postgres` to run it there."""
