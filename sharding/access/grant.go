package access

// Grant is what an authenticated connection may do; immutable.
type Grant struct{ user User }

// Everyone is the grant of everybody while nothing is checked.
var Everyone = &Grant{user: User{Name: Default, Admin: true}}

// Name is the user's.
func (g *Grant) Name() string { return g.user.Name }

// Admin says whether the user may do everything.
func (g *Grant) Admin() bool { return g.user.Admin }

// Jobs says whether the user may run jobs at all.
func (g *Grant) Jobs() bool { return g.user.Jobs || g.user.Admin }

// MayRead says whether the user may read a key.
func (g *Grant) MayRead(key []byte) bool {
	if g.user.Admin {
		return true
	}
	for i := range g.user.Rights {
		if begins(key, g.user.Rights[i].Prefix) {
			return true
		}
	}
	return false
}

// MayWrite says whether the user may write a key, which lets him read it: most commands that write tell what was there.
func (g *Grant) MayWrite(key []byte) bool {
	if g.user.Admin {
		return true
	}
	for i := range g.user.Rights {
		if r := &g.user.Rights[i]; r.Write && begins(key, r.Prefix) {
			return true
		}
	}
	return false
}

// MayReadPrefix says whether the user may read every key that begins with prefix.
func (g *Grant) MayReadPrefix(prefix string) bool { return g.MayRead([]byte(prefix)) }

// MayReadSome and MayWriteSome say whether there is anything that the user may read, or write.
func (g *Grant) MayReadSome() bool { return g.user.Admin || len(g.user.Rights) > 0 }

func (g *Grant) MayWriteSome() bool {
	if g.user.Admin {
		return true
	}
	for _, r := range g.user.Rights {
		if r.Write {
			return true
		}
	}
	return false
}

func begins(key []byte, prefix string) bool {
	return len(key) >= len(prefix) && string(key[:len(prefix)]) == prefix
}
