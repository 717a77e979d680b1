//! A machine in the local network that has addresses of the cluster: a namespace of its own at the other end of `wan0`.

use std::any::Any;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use super::scene::{self, PATIENCE};

/// Its addresses.
pub(crate) const ADDRESS4: &str = "10.96.5.5";
/// Its addresses.
pub(crate) const ADDRESS6: &str = "fd00:96::5";

/// Every hardware address is known, so that the leak meter counts no question for one.
const SETUP: &str = "
    link set lo up
    link set wan1 address 02:00:00:00:00:01
    link set wan1 up
    addr add 10.96.5.5/32 dev wan1
    addr add fd00:96::5/128 dev wan1 nodad
    route add 198.51.100.0/24 dev wan1
    -6 route add 2001:db8:51::/64 dev wan1
    neigh add 198.51.100.2 lladdr 02:00:00:00:00:02 dev wan1 nud permanent
    neigh add 2001:db8:51::2 lladdr 02:00:00:00:00:02 dev wan1 nud permanent
";

type Anything = Box<dyn Any + Send>;
type Order = Box<dyn FnOnce() -> Anything + Send>;

/// Does what it is told in its namespace, until it is dropped.
pub(crate) struct Neighbour {
    orders: Sender<Order>,
    results: Receiver<Anything>,
}

impl Neighbour {
    /// Moves in at the other end of this scene's `wan0`.
    pub(crate) fn move_in() -> Self {
        Self::in_namespace("wan1", SETUP)
    }

    /// A namespace with this interface in it, set up by these commands.
    fn in_namespace(interface: &str, setup: &'static str) -> Self {
        let (orders, to_do) = channel::<Order>();
        let (done, results) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            for order in to_do {
                if done.send(order()).is_err() {
                    return;
                }
            }
        });
        let neighbour = Self { orders, results };
        scene::ip(&format!("link set {interface} netns {}", neighbour.does(gettid)));
        neighbour
            .does(move || setup.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(scene::ip));
        neighbour
    }

    /// Runs this in its namespace; sockets made there stay there.
    pub(crate) fn does<T: Send + 'static>(&self, order: impl FnOnce() -> T + Send + 'static) -> T {
        self.orders.send(Box::new(move || Box::new(order()))).unwrap();
        *self.results.recv_timeout(PATIENCE).expect("the neighbour does it").downcast().unwrap()
    }

    /// Connects to the machine of the test from [`ADDRESS4`] or [`ADDRESS6`].
    pub(crate) fn connects_to(&self, address: String) -> TcpStream {
        self.does(move || scene::connect_to(&address))
    }

    /// Listens at one of its addresses.
    pub(crate) fn listens(&self, address: &'static str) -> TcpListener {
        self.does(move || TcpListener::bind((address, 0)).unwrap())
    }
}

/// Somebody behind a bridge of this machine, `br0`, as a container is.
pub(crate) struct Container(Neighbour);

const BRIDGE: &str = "
    link add br0 type bridge
    addr add 172.18.0.1/24 dev br0
    addr add fd77::1/64 dev br0 nodad
    link set br0 up
    link add veth0 type veth peer name eth0
    link set veth0 master br0
    link set veth0 up
";

const INSIDE: &str = "
    link set lo up
    link set eth0 up
    addr add 172.18.0.2/24 dev eth0
    addr add fd77::2/64 dev eth0 nodad
    route add default via 172.18.0.1
    -6 route add default via fd77::1
";

impl Container {
    /// Makes the bridge and moves in behind it.
    pub(crate) fn start() -> Self {
        BRIDGE.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(scene::ip);
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap();
        }
        Self(Neighbour::in_namespace("eth0", INSIDE))
    }

    /// Runs this in its namespace; sockets made there stay there.
    pub(crate) fn does<T: Send + 'static>(&self, order: impl FnOnce() -> T + Send + 'static) -> T {
        self.0.does(order)
    }
}
