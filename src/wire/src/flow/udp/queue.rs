//! Datagrams that wait, bounded: one that finds no room is dropped, as a full socket buffer does it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

use super::Unsent;

/// Bytes that may wait in one direction of a flow: about what a socket buffer holds by default (`net.core.rmem_default` is
/// 208 KiB), and three of the longest datagrams.
pub(super) const QUEUE_BYTES: usize = 256 << 10;

/// Memory a datagram takes beside its bytes: many small ones must not escape the bound.
const DATAGRAM_COST: usize = 128;

struct Shared {
    room: Semaphore,
    dropped: AtomicU64,
}

/// Where datagrams come in. Dropped, it ends the queue.
pub(super) struct Entry {
    sender: mpsc::UnboundedSender<Bytes>,
    shared: Arc<Shared>,
}

/// Where they come out.
pub(super) struct Exit {
    receiver: mpsc::UnboundedReceiver<Bytes>,
    shared: Arc<Shared>,
}

pub(super) fn queue() -> (Entry, Exit) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared { room: Semaphore::new(QUEUE_BYTES), dropped: AtomicU64::new(0) });
    (Entry { sender, shared: shared.clone() }, Exit { receiver, shared })
}

impl Entry {
    /// Puts a datagram at the end, if there is room.
    pub(super) fn put(&self, datagram: Bytes) -> Result<(), Unsent> {
        match self.shared.room.try_acquire_many(cost(&datagram) as u32) {
            Ok(room) => room.forget(),
            Err(_) if self.sender.is_closed() => return Err(Unsent::Ended),
            Err(_) => {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                return Err(Unsent::Full);
            }
        }
        self.sender.send(datagram).map_err(|_| Unsent::Ended)
    }

    /// Datagrams that found no room.
    pub(super) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Exit {
    /// The next datagram; `None` when no more will come. Safe to cancel.
    pub(super) async fn take(&mut self) -> Option<Bytes> {
        let datagram = self.receiver.recv().await?;
        Some(self.taken(datagram))
    }

    /// The next datagram, if there is one now.
    pub(super) fn take_now(&mut self) -> Option<Bytes> {
        let datagram = self.receiver.try_recv().ok()?;
        Some(self.taken(datagram))
    }

    /// Datagrams that found no room.
    pub(super) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    fn taken(&self, datagram: Bytes) -> Bytes {
        self.shared.room.add_permits(cost(&datagram));
        datagram
    }
}

fn cost(datagram: &Bytes) -> usize {
    datagram.len() + DATAGRAM_COST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_finds_no_room_is_dropped_and_counted() {
        let (entry, mut exit) = queue();
        for (length, fit) in [(65_507, 3), (1_400, 171), (0, 2_048)] {
            let dropped = entry.dropped();
            for _ in 0..fit {
                entry.put(vec![7; length].into()).unwrap();
            }
            assert_eq!(entry.put(vec![7; length].into()), Err(Unsent::Full));
            assert_eq!(exit.dropped(), dropped + 1);
            for _ in 0..fit {
                assert_eq!(exit.take().await.unwrap().len(), length);
            }
            assert_eq!(exit.take_now(), None);
        }
    }

    #[tokio::test]
    async fn each_side_learns_of_the_others_end() {
        let (entry, mut exit) = queue();
        entry.put("last".into()).unwrap();
        drop(entry);
        assert_eq!(exit.take().await.unwrap(), "last");
        assert_eq!(exit.take().await, None);
        let (entry, exit) = queue();
        drop(exit);
        assert_eq!(entry.put("x".into()), Err(Unsent::Ended));
    }
}
