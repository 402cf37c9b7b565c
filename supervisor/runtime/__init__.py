"""Acts: processes, sockets, memory, files. Decides nothing."""
