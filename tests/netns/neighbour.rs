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
        scene::ip(&format!("link set wan1 netns {}", neighbour.does(gettid)));
        neighbour.does(|| SETUP.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(scene::ip));
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
