"""The whole federation in one process: the real server app and the real client app over an in-memory grid."""
