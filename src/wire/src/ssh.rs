//! SSH settings both ends share. Who may come in is the server's business, who we talk to the client's.

use std::borrow::Cow;
use std::time::Duration;

use russh::{Limits, Preferred, cipher};

/// Subsystem (RFC 4254 §6.5) whose channel carries HTTP/2 flows. The part after `@` is the protocol's version.
pub const FLOWS_SUBSYSTEM: &str = "kshuttle-flows@1";

/// Subsystem whose channel carries the pod's `/etc/resolv.conf` and ends: which name servers and domains the cluster has.
pub const RESOLVER_SUBSYSTEM: &str = "kshuttle-resolver@1";

/// Where that is (`man 5 resolv.conf`).
pub const RESOLVER_FILE: &str = "/etc/resolv.conf";

/// Most bytes of it that are sent or taken. The kubelet writes at most 2 kB: 32 search domains of 2,048 characters together.
pub const RESOLVER_MAX: usize = 16 * 1024;

/// Software version in our server's identification string (RFC 4253 §4.2); tells our pod from a stock server.
pub const SERVER_ID: &str = concat!("SSH-2.0-kshuttle_", env!("CARGO_PKG_VERSION"));

/// How the identification string of every version of our server begins.
pub const SERVER_ID_START: &str = "SSH-2.0-kshuttle_";

/// The client's identification string.
pub const CLIENT_ID: &str = SERVER_ID;

/// Environment variable (RFC 4254 §6.4) by which the laptop tells its pacing policy, when it is not the default.
pub const PACING_VARIABLE: &str = "KSHUTTLE_PACING";

/// Receive window of a channel in a plain session, in bytes: also what may queue in the path before a short answer.
/// 1 MiB costs no throughput up to about 10 ms of round trip (the peer refills it at half).
pub const WINDOW: u32 = 1 << 20;

/// The same over a link. There the pacing decides what is in flight, so the window only must not be what limits it:
/// 16 MiB is the largest budget.
pub const LINK_WINDOW: u32 = 16 << 20;

/// The same for each channel of a session with a server that is not ours: OpenSSH's own, for one connection that shares the
/// session with others.
pub const STOCK_WINDOW: u32 = 2 << 20;

/// Largest channel packet in bytes; russh accepts no more than 65,535, and fewer, bigger packets cost less.
pub const MAX_PACKET: u32 = 65_535;

/// Messages russh holds for a channel before its session stops, reading and writing, until somebody takes them. With full
/// packets this bounds the queue of a connection whose target does not read at 4 MiB.
pub const CHANNEL_BUFFER: usize = 64;

/// The same over a link, where the one channel carries HTTP/2. That takes them at once unless it has to answer something
/// and its answer must wait for a turn of the session; stopped meanwhile, each would wait for the other for ever. So this
/// is more than arrives in a round trip: the largest budget in the smallest chunks. From a peer that breaks all rules it
/// holds 512 MiB.
pub const LINK_CHANNEL_BUFFER: usize = 8_192;

/// Seconds between SSH keep-alives. Load balancers cut idle connections after 60 s and more.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Unanswered keep-alives before a session is given up: a silent path is found dead within 40 s.
pub const KEEPALIVE_MAX: usize = 3;

/// Algorithms in order of preference: AES-GCM first, because every machine of the last decade computes it in
/// hardware and russh's own default list leaves out the fastest, `aes128-gcm`.
pub fn preferred() -> Preferred {
    Preferred {
        cipher: Cow::Borrowed(&[cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::CHACHA20_POLY1305]),
        ..Preferred::DEFAULT
    }
}

/// When keys are renewed in a session with a server that is not ours. It renews them first, as OpenSSH does at 64 GiB or at
/// its `RekeyLimit`: then it sends nothing meanwhile, and nothing is under way that would end the session.
pub fn stock_limits() -> Limits {
    Limits { rekey_write_limit: 1 << 37, rekey_read_limit: 1 << 37, ..limits() }
}

/// When keys are renewed. russh 0.65 ends a busy session when a renewal meets more than two windows of data in
/// flight, so it happens as late as is sound: 64 GiB is OpenSSH's own limit for ciphers with 16-byte blocks.
pub fn limits() -> Limits {
    Limits {
        rekey_write_limit: 1 << 36,
        rekey_read_limit: 1 << 36,
        rekey_time_limit: Duration::from_secs(7 * 24 * 3600),
    }
}
