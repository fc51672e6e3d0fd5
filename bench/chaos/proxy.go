package main

import (
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// A proxy stands between a client and a server and can do to their connections
// what a network does: cut one in the middle of an answer, or be silent.
type proxy struct {
	port int

	gate sync.RWMutex // held while nothing passes

	mu     sync.Mutex
	target string
	links  map[*link]bool
	cuts   int // connections that were cut
}

// A link is one connection through a proxy.
type link struct {
	client, server net.Conn
	once           sync.Once

	mu  sync.Mutex
	cut int // in the next answer, after so many bytes; 0: not
}

func newProxy(port int, target string) (*proxy, error) {
	l, err := net.Listen("tcp", local(port))
	if err != nil {
		return nil, err
	}
	p := &proxy{port: port, target: target, links: map[*link]bool{}}
	go func() { // as long as we live
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p, nil
}

func (p *proxy) serve(client net.Conn) {
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		reset(client)
		return
	}
	l := &link{client: client, server: server}
	p.mu.Lock()
	there := target == p.target
	if there {
		p.links[l] = true
	}
	p.mu.Unlock()
	if !there {
		l.close(true)
		return
	}
	go p.pass(l, client, server, false)
	p.pass(l, server, client, true)
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// pass copies one direction until it ends, and with it the other.
func (p *proxy) pass(l *link, from, to net.Conn, answer bool) {
	defer l.close(false)
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			p.wait()
			if cut := l.cutting(answer); cut > 0 {
				_, _ = to.Write(buf[:min(cut, n-1)])
				l.close(true)
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// wait waits while nothing passes. It does not hold the gate for longer: who
// does not read what is written would hold up silence.
func (p *proxy) wait() {
	p.gate.RLock()
	defer p.gate.RUnlock()
}

func (l *link) cutting(answer bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !answer {
		return 0
	}
	return l.cut
}

func (l *link) close(hard bool) {
	l.once.Do(func() {
		if hard {
			reset(l.client)
			reset(l.server)
			return
		}
		l.client.Close()
		l.server.Close()
	})
}

// reset closes a connection as one does that knows nothing of it.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}

// cutAll cuts each connection, or about half of them, in the middle of its next
// answer; one without an answer is cut after 3 seconds. Which, and where, is
// chance and not the seed's.
func (p *proxy) cutAll(half bool) {
	p.mu.Lock()
	var chosen []*link
	for l := range p.links {
		if half && rand.IntN(2) == 0 {
			continue
		}
		chosen = append(chosen, l)
		p.cuts++
	}
	p.mu.Unlock()
	for _, l := range chosen {
		l.mu.Lock()
		l.cut = 1 + rand.IntN(300)
		l.mu.Unlock()
	}
	time.Sleep(3 * time.Second)
	for _, l := range chosen {
		l.close(true)
	}
}

// silence lets nothing pass for a while. What was sent meanwhile arrives later,
// or, if drop is set, the connections end with it.
func (p *proxy) silence(d time.Duration, drop bool) {
	p.gate.Lock()
	time.Sleep(d)
	if drop {
		p.mu.Lock()
		for l := range p.links {
			l.close(true)
			p.cuts++
		}
		p.mu.Unlock()
	}
	p.gate.Unlock()
}
