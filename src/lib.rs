//! Makes a laptop behave as if it stood inside a Kubernetes cluster.
//!
//! The modules follow the way of one connection:
//!
//! ```text
//!  application                     kshuttle (user)                    cluster
//!  connect 10.96.0.10:443
//!    │  kernel: REDIRECT
//!    ▼
//!  proxy::redirect ── orig_dst ─┐
//!  proxy::socks    ── handshake─┤
//!  dns             ── question ─┴▶ tunnel (Connect) ── one flow ──▶ sshd pod ──▶ 10.96.0.10:443
//!                                     │ SSH session over a link over
//!                                  cluster::port_forward ── API server ──▶ pod's 127.0.0.1
//!  port_forward: a connection to a local port ── cluster::port_forward ──▶ a port of the user's pod; no pod of ours
//!  session: whether another run lives, and what the next one needs to go on with this one's pod
//!  control: `kshuttle status` and `quit` ask a session that runs
//!  helper (root, tiny): puts the rules in; takes them out when its input ends
//! ```
//!
//! Who may use whom: `app` joins everything; `proxy` and `dns` know only the trait [`tunnel::Connect`]; `tunnel`
//! takes any byte stream; `cluster` knows kube and nobody else; `port_forward` joins `cluster` and `proxy`'s accept loop.

pub mod addr;
pub mod app;
pub mod cli;
pub mod cluster;
pub mod control;
pub mod dns;
pub mod failure;
pub mod logging;
pub mod port_forward;
pub mod privileged;
pub mod privileges;
pub mod proxy;
pub mod report;
pub mod session;
pub mod shutdown;
pub mod sudoers;
pub mod surroundings;
pub mod tunnel;
