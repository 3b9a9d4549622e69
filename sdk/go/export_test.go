package duet

// FreeBehindItsBack frees a session as C could.
func FreeBehindItsBack(s *Session) { s.owner.free(s.owner.handle) }
