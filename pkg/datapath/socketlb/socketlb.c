//go:build ignore

// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)

// Socket load-balancing: a socket that is told to go to a Service goes to one of
// its backends from the start, so that no packet of it has to be translated.
//
// A program that does not know what to do does nothing: the packets then leave
// for the Service's address, and the nftables table clustermesh-services, which
// holds the same and more, decides. The C side reads what the Go side writes
// (fronts, slots, members) and writes what it alone reads (kept, chosen, sent,
// peers).
//
// Maps outlive the agent that made them. One that comes to mean something else
// gets another name, unless its sizes change with it.

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define ALLOW 1 // what every program here returns

// An endpoint is an address and port. IPv4 addresses are mapped (RFC 4291, 2.5.5.2).
struct endpoint {
	__be32 addr[4];
	__be16 port;
	__u16 pad;
};

struct front {
	struct endpoint at;
	__u8 protocol; // IANA number
	__u8 pad[3];
};

// Where a front leads: to slots 0 to n-1 of a set. A set never changes; when
// backends do, the front gets another one.
struct choice {
	__u32 set;
	__u32 slots;
	__u32 affinity; // seconds for which a client stays with its backend; 0: it does not
};

struct slot {
	__u32 set;
	__u32 index;
};

struct member {
	__u32 set;
	struct endpoint backend;
};

// Who goes to a front: a network namespace, for session affinity, or a socket,
// for datagrams.
struct client {
	__u64 cookie;
	struct front front;
};

struct keep {
	__u64 until; // in ns of the boot clock
	struct endpoint backend;
	__u32 pad;
};

// Who has sent datagrams where, without being connected.
struct talk {
	__u64 cookie; // of the socket
	struct endpoint backend;
	__u32 pad;
};

// What a connected socket believes to be connected to, and what it is.
struct peer {
	struct endpoint front;
	struct endpoint backend;
};

// Writer: Go.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 17);
	__type(key, struct front);
	__type(value, struct choice);
} fronts SEC(".maps");

// Writer: Go.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 19);
	__type(key, struct slot);
	__type(value, struct endpoint);
} slots SEC(".maps");

// The backends of sets whose fronts have clients that stay. Writer: Go.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 18);
	__type(key, struct member);
	__type(value, __u8);
} members SEC(".maps");

// Which backend a namespace stays with. Writer: the programs.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 15);
	__type(key, struct client);
	__type(value, struct keep);
} kept SEC(".maps");

// Which backend the datagrams of a socket go to that is not connected. Not in
// kept: there is no end of such sockets, and they would push the others out.
// Writer: the programs.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 16);
	__type(key, struct client);
	__type(value, struct endpoint);
} chosen SEC(".maps");

// Which front a socket meant when it sent to a backend without being connected
// to it. Writer: the programs.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 16);
	__type(key, struct talk);
	__type(value, struct endpoint);
} sent SEC(".maps");

// The same for connected sockets, of which none may be forgotten.
// Writer: the programs.
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct peer);
} peers SEC(".maps");

// The connected ones of UDP once more, by cookie, for Go to find those that are
// connected to what is no backend any more. Room for as many as there are: the
// oldest goes only if there are more. Writer: the programs, and Go when a socket
// is gone.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 16);
	__type(key, __u64);
	__type(value, struct peer);
} connected SEC(".maps");

enum outcome {
	FORWARDED, // a socket was sent to a backend
	MISSED,	   // a slot was not there, and the packets were left to nftables
	OUTCOMES,
};

// Writer: the programs.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} outcomes SEC(".maps");

// The only network namespace whose sockets are looked at, by its cookie; 0: all.
volatile const __u64 only_netns;

static __always_inline void count(__u32 outcome)
{
	__u64 *n = bpf_map_lookup_elem(&outcomes, &outcome);
	if (n)
		(*n)++;
}

static __always_inline int same(const struct endpoint *a, const struct endpoint *b)
{
	return a->addr[0] == b->addr[0] && a->addr[1] == b->addr[1] && a->addr[2] == b->addr[2] &&
	       a->addr[3] == b->addr[3] && a->port == b->port;
}

static __always_inline struct endpoint mapped(__be32 ip4, __u32 port)
{
	return (struct endpoint){.addr = {0, 0, bpf_htonl(0xffff), ip4}, .port = port};
}

// The address in the context: where to, or for getpeername and recvmsg where from.
static __always_inline struct endpoint get(struct bpf_sock_addr *ctx, int six)
{
	if (!six)
		return mapped(ctx->user_ip4, ctx->user_port);
	return (struct endpoint){
		.addr = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]},
		.port = ctx->user_port,
	};
}

static __always_inline void set(struct bpf_sock_addr *ctx, int six, const struct endpoint *e)
{
	if (six) {
		ctx->user_ip6[0] = e->addr[0];
		ctx->user_ip6[1] = e->addr[1];
		ctx->user_ip6[2] = e->addr[2];
		ctx->user_ip6[3] = e->addr[3];
	} else {
		ctx->user_ip4 = e->addr[3];
	}
	ctx->user_port = e->port;
}

// Where a front leads to, as a copy. When an element is replaced, another may get
// its memory at once (Linux 6.1, kernel/bpf/memalloc.c): what was read counts if
// the element is still there afterwards.
static __always_inline int leads(const struct front *f, struct choice *choice)
{
	struct choice *c = bpf_map_lookup_elem(&fronts, f);
	if (!c)
		return 0;
	*choice = *c;
	if (bpf_map_lookup_elem(&fronts, f) == c)
		return 1;
	count(MISSED);
	return 0;
}

static __always_inline int pick(const struct choice *choice, struct endpoint *backend)
{
	if (!choice->slots)
		return 0;
	struct slot s = {.set = choice->set, .index = bpf_get_prandom_u32() % choice->slots};
	struct endpoint *e = bpf_map_lookup_elem(&slots, &s);
	if (e) {
		*backend = *e;
		if (bpf_map_lookup_elem(&slots, &s) == e) // see leads
			return 1;
	}
	count(MISSED); // the front has just got another set
	return 0;
}

static __always_inline int is_backend(const struct choice *choice, const struct endpoint *e)
{
	struct member m = {.set = choice->set, .backend = *e};
	return bpf_map_lookup_elem(&members, &m) != 0;
}

// The backend that a client stays with, if it is still one.
static __always_inline int stays(const struct client *c, const struct choice *choice, __u64 now, struct endpoint *backend)
{
	struct keep *k = bpf_map_lookup_elem(&kept, c);
	if (!k || k->until < now)
		return 0;
	*backend = k->backend;
	return is_backend(choice, backend);
}

// The backend for a new connection to a front.
static __always_inline int choose(struct bpf_sock_addr *ctx, const struct front *f, const struct choice *choice, struct endpoint *backend)
{
	struct client c = {.cookie = bpf_get_netns_cookie(ctx), .front = *f};
	__u64 now = bpf_ktime_get_boot_ns();
	if (!(choice->affinity && stays(&c, choice, now, backend)) && !pick(choice, backend))
		return 0;
	// An address is translated once: a backend that is a front itself leads
	// nowhere.
	struct front next = {.at = *backend, .protocol = f->protocol};
	if (bpf_map_lookup_elem(&fronts, &next))
		return 0;
	if (choice->affinity) {
		struct keep k = {.until = now + choice->affinity * 1000000000ULL, .backend = *backend};
		bpf_map_update_elem(&kept, &c, &k, BPF_ANY);
	}
	return 1;
}

// The backend for a datagram. All of a socket's to one front go to the same one,
// as those of a flow in connection tracking do: they may be parts of one
// conversation. fresh tells whether it is a new one.
static __always_inline int choose_datagram(struct bpf_sock_addr *ctx, const struct client *c, const struct choice *choice,
					   struct endpoint *backend, int *fresh)
{
	struct endpoint *e = bpf_map_lookup_elem(&chosen, c);
	*fresh = 0;
	if (e) {
		*backend = *e;
		if (is_backend(choice, backend))
			return 1;
	}
	*fresh = 1;
	return choose(ctx, &c->front, choice, backend);
}

// Answers from a backend shall look as if they came from the front. Where the
// socket has got them from it by another front, they can't be told apart.
static __always_inline int remember_sent(__u64 cookie, const struct endpoint *front, const struct endpoint *backend)
{
	struct talk t = {.cookie = cookie, .backend = *backend};
	struct endpoint *was = bpf_map_lookup_elem(&sent, &t);
	if (was)
		return same(was, front);
	return bpf_map_update_elem(&sent, &t, front, BPF_ANY) == 0;
}

// A socket that speaks to a backend itself gets answers from the backend.
static __always_inline void forget_sent(__u64 cookie, const struct endpoint *to)
{
	struct talk t = {.cookie = cookie, .backend = *to};
	if (bpf_map_lookup_elem(&sent, &t))
		bpf_map_delete_elem(&sent, &t);
}

static __always_inline void forget_connected(__u64 cookie)
{
	if (bpf_map_lookup_elem(&connected, &cookie))
		bpf_map_delete_elem(&connected, &cookie);
}

// A datagram socket is connected no more, or to something else from now on: no
// hook tells of disconnecting. What it began it goes on with.
static __always_inline void let_go(struct bpf_sock_addr *ctx, __u64 cookie)
{
	struct peer *p = bpf_sk_storage_get(&peers, ctx->sk, 0, 0);
	if (!p)
		return;
	struct client c = {.cookie = cookie, .front = {.at = p->front, .protocol = IPPROTO_UDP}};
	struct endpoint backend = p->backend;
	bpf_map_update_elem(&chosen, &c, &backend, BPF_ANY);
	remember_sent(cookie, &c.front.at, &backend);
	bpf_sk_storage_delete(&peers, ctx->sk);
	forget_connected(cookie);
}

static __always_inline int looked_at(struct bpf_sock_addr *ctx)
{
	return !only_netns || bpf_get_netns_cookie(ctx) == only_netns;
}

static __always_inline int on_connect(struct bpf_sock_addr *ctx, int six)
{
	__u32 protocol = ctx->protocol;
	if ((protocol != IPPROTO_TCP && protocol != IPPROTO_UDP) || !looked_at(ctx))
		return ALLOW;
	struct client c = {.cookie = bpf_get_socket_cookie(ctx), .front = {.at = get(ctx, six), .protocol = protocol}};
	if (protocol == IPPROTO_UDP)
		let_go(ctx, c.cookie);
	else
		bpf_sk_storage_delete(&peers, ctx->sk); // of an attempt before
	struct choice choice;
	struct peer p = {.front = c.front.at};
	int fresh;
	if (!leads(&c.front, &choice))
		return ALLOW;
	if (!(protocol == IPPROTO_UDP ? choose_datagram(ctx, &c, &choice, &p.backend, &fresh) : choose(ctx, &c.front, &choice, &p.backend)))
		return ALLOW;
	if (!bpf_sk_storage_get(&peers, ctx->sk, &p, BPF_SK_STORAGE_GET_F_CREATE)) // no memory: better translated than nameless
		return ALLOW;
	if (protocol == IPPROTO_UDP)
		bpf_map_update_elem(&connected, &c.cookie, &p, BPF_ANY);
	set(ctx, six, &p.backend);
	count(FORWARDED);
	return ALLOW;
}

// A connected socket takes answers from its peer alone, also if it is given an
// address with a datagram: it is as connected as nftables has it, or as we do.
// With IPv6, those to mapped addresses all come by here.
static __always_inline int on_sendmsg_connected(struct bpf_sock_addr *ctx, int six)
{
	struct peer *p = bpf_sk_storage_get(&peers, ctx->sk, 0, 0);
	struct endpoint to = get(ctx, six);
	if (p && same(&p->front, &to))
		set(ctx, six, &p->backend);
	return ALLOW;
}

static __always_inline int on_sendmsg(struct bpf_sock_addr *ctx, int six)
{
	if (ctx->protocol != IPPROTO_UDP || !looked_at(ctx))
		return ALLOW;
	if (ctx->sk->state == BPF_TCP_ESTABLISHED)
		return on_sendmsg_connected(ctx, six);
	struct client c = {.cookie = bpf_get_socket_cookie(ctx), .front = {.at = get(ctx, six), .protocol = IPPROTO_UDP}};
	let_go(ctx, c.cookie);
	struct choice choice;
	struct endpoint backend;
	int fresh;
	if (!leads(&c.front, &choice) || !choose_datagram(ctx, &c, &choice, &backend, &fresh)) {
		forget_sent(c.cookie, &c.front.at);
		return ALLOW;
	}
	if (fresh)
		bpf_map_update_elem(&chosen, &c, &backend, BPF_ANY);
	if (!remember_sent(c.cookie, &c.front.at, &backend))
		return ALLOW;
	set(ctx, six, &backend);
	count(FORWARDED);
	return ALLOW;
}

// Names the front in place of the backend that a socket is connected to.
static __always_inline int name_peer(struct bpf_sock_addr *ctx, int six)
{
	struct peer *p = bpf_sk_storage_get(&peers, ctx->sk, 0, 0);
	if (!p)
		return 0;
	struct endpoint is = get(ctx, six);
	if (!same(&is, &p->backend))
		return 0;
	set(ctx, six, &p->front);
	return 1;
}

static __always_inline int on_recvmsg(struct bpf_sock_addr *ctx, int six)
{
	if (ctx->protocol != IPPROTO_UDP || !looked_at(ctx) || name_peer(ctx, six))
		return ALLOW;
	struct talk t = {.cookie = bpf_get_socket_cookie(ctx), .backend = get(ctx, six)};
	struct endpoint *front = bpf_map_lookup_elem(&sent, &t);
	if (front)
		set(ctx, six, front);
	return ALLOW;
}

static __always_inline int on_getpeername(struct bpf_sock_addr *ctx, int six)
{
	name_peer(ctx, six);
	return ALLOW;
}

#define PROGRAM(hook)                                          \
	SEC("cgroup/" #hook "4")                               \
	int hook##4(struct bpf_sock_addr *ctx)                 \
	{                                                      \
		return on_##hook(ctx, 0);                      \
	}                                                      \
	SEC("cgroup/" #hook "6")                               \
	int hook##6(struct bpf_sock_addr *ctx)                 \
	{                                                      \
		return on_##hook(ctx, 1);                      \
	}

PROGRAM(connect)
PROGRAM(sendmsg)
PROGRAM(recvmsg)
PROGRAM(getpeername)

SEC("cgroup/sock_release")
int release(struct bpf_sock *sk)
{
	if (sk->protocol == IPPROTO_UDP)
		forget_connected(bpf_get_socket_cookie(sk));
	return ALLOW;
}

char __license[] SEC("license") = "Dual BSD/GPL";
