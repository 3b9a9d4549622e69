package duet

// Hold keeps a session in use, as a call does while it copies rows and the library has returned.
func Hold(s *Session) (leave func(), err error) { return enter(s.owner) }

// FreeBehindItsBack frees a session as C could.
func FreeBehindItsBack(s *Session) { s.owner.free(s.owner.handle) }
