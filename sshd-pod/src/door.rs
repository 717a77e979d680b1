//! Who has not logged in yet. There is room for so many of them and no more: anybody who reaches the pod's loopback can
//! be one.
//!
//! Each is in one of three states: waiting → admitted, or waiting → turned away, which ends its stream. Whoever comes
//! when there is no room makes one of all of them leave, chosen by chance: someone who fills the room over and over
//! cannot keep an honest client out for long, and one that comes back gets in.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Visitors at once. Each costs about 25 kB while keys are exchanged; OpenSSH's `MaxStartups` ends at 100, too.
const VISITORS_MAX: usize = 100;

/// Those who were turned away and have not left yet. Leaving takes a moment of processor time, in which as many again
/// could come, each with its memory.
const LEAVING_MAX: usize = 28;

/// How long a next one waits for those to leave: they need milliseconds; longer means that something holds them, and
/// then it must not hold everybody else.
const LEAVING_TIME: Duration = Duration::from_secs(1);

/// The room before the login. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    waiting: Arc<Mutex<Vec<Arc<Visit>>>>,
    /// A permit for each who waits or leaves.
    places: Arc<Semaphore>,
}

impl Default for Door {
    fn default() -> Self {
        Self { waiting: Arc::default(), places: Arc::new(Semaphore::new(VISITORS_MAX + LEAVING_MAX)) }
    }
}

/// One who has not logged in yet, or has meanwhile. Dropping it leaves.
pub struct Visitor {
    visit: Arc<Visit>,
    door: Door,
}

#[derive(Default)]
struct Visit {
    admitted: AtomicBool,
    away: CancellationToken,
    place: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Door {
    /// Returns when one more may come: at once, unless many are just leaving.
    pub async fn room(&self) {
        // Fails only when closed, which nobody does; late is better than never.
        let _ = tokio::time::timeout(LEAVING_TIME, self.places.acquire()).await;
    }

    /// Somebody comes in; somebody may have to leave for that.
    pub fn enter(&self) -> Visitor {
        let place = Mutex::new(self.places.clone().try_acquire_owned().ok());
        let visit = Arc::new(Visit { place, ..Visit::default() });
        let mut waiting = self.lock();
        if waiting.len() >= VISITORS_MAX {
            let place = any_of(waiting.len());
            let chosen = waiting.swap_remove(place);
            chosen.away.cancel();
            tracing::debug!("no room for more who have not logged in: one was turned away");
        }
        waiting.push(visit.clone());
        drop(waiting);
        Visitor { visit, door: self.clone() }
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn leave(&self, visit: &Arc<Visit>) {
        self.lock().retain(|waiting| !Arc::ptr_eq(waiting, visit));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Visit>>> {
        // A panic while holding the lock cannot leave the list half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that nobody can foresee: each `RandomState` has other keys, from the system's randomness.
fn any_of(places: usize) -> usize {
    let random = RandomState::new().hash_one(places);
    usize::try_from(random % places as u64).expect("less than a usize")
}

impl Visitor {
    /// It has logged in: nobody turns it away any more.
    pub fn admit(&self) {
        self.visit.admitted.store(true, Ordering::Release);
        *self.visit.place.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.door.leave(&self.visit);
    }

    /// Ends its stream, unless it was admitted.
    pub fn turn_away(&self, why: &str) {
        if !self.visit.admitted.load(Ordering::Acquire) {
            tracing::info!("turned away: {why}");
            self.visit.away.cancel();
        }
    }

    /// Returns when it is turned away.
    pub async fn turned_away(&self) {
        self.visit.away.cancelled().await;
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.door.leave(&self.visit);
    }
}

/// A visitor's stream: fails once it is turned away, whatever its other end does.
pub struct Entrance<S> {
    stream: S,
    visitor: Arc<Visitor>,
    /// The first bytes we send admit it.
    answer_admits: bool,
    /// One for each direction, as each has its own task to wake. None once admitted.
    reading: Option<Away>,
    writing: Option<Away>,
}

type Away = Pin<Box<WaitForCancellationFutureOwned>>;

impl<S> Entrance<S> {
    /// Somebody else admits it.
    pub fn new(stream: S, visitor: Arc<Visitor>) -> Self {
        let away = || Some(Box::pin(visitor.visit.away.clone().cancelled_owned()));
        let (reading, writing) = (away(), away());
        Self { stream, visitor, answer_admits: false, reading, writing }
    }

    /// Our first answer admits it.
    pub fn until_answered(stream: S, visitor: Arc<Visitor>) -> Self {
        Self { answer_admits: true, ..Self::new(stream, visitor) }
    }
}

/// An error once the visitor was turned away.
fn check(away: &mut Option<Away>, visitor: &Visitor, cx: &mut Context<'_>) -> io::Result<()> {
    if let Some(waiting) = away {
        if visitor.visit.admitted.load(Ordering::Acquire) {
            *away = None;
        } else if waiting.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "turned away before the login"));
        }
    }
    Ok(())
}

impl<S: AsyncRead + Unpin> AsyncRead for Entrance<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        check(&mut this.reading, &this.visitor, cx)?;
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Entrance<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        check(&mut this.writing, &this.visitor, cx)?;
        if std::mem::take(&mut this.answer_admits) {
            this.visitor.admit();
        }
        Pin::new(&mut this.stream).poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        check(&mut this.writing, &this.visitor, cx)?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn turning_away_ends_both_directions_wherever_they_wait() {
        let door = Door::default();
        let visitor = Arc::new(door.enter());
        let (near, _far) = tokio::io::duplex(16);
        let (mut read, mut write) = tokio::io::split(Entrance::new(near, visitor.clone()));
        let reading = tokio::spawn(async move { read.read(&mut [0; 1]).await });
        let writing = tokio::spawn(async move { write.write_all(&[0; 1000]).await });
        tokio::task::yield_now().await;
        visitor.turn_away("test");
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_is_admitted_stays() {
        let door = Door::default();
        let visitor = Arc::new(door.enter());
        let (near, mut far) = tokio::io::duplex(16);
        let mut near = Entrance::until_answered(near, visitor.clone());
        assert_eq!(door.count(), 1);
        near.write_all(b"hello").await.unwrap();
        assert_eq!(door.count(), 0);
        visitor.turn_away("test");
        far.write_all(b"x").await.unwrap();
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn the_room_is_bounded_and_nobody_is_sure_of_a_place() {
        let door = Door::default();
        let visitors: Vec<_> = (0..10 * VISITORS_MAX).map(|_| door.enter()).collect();
        assert_eq!(door.count(), VISITORS_MAX);
        let stay: Vec<_> = visitors.iter().map(|visitor| !visitor.visit.away.is_cancelled()).collect();
        assert_eq!(stay.iter().filter(|stays| **stays).count(), VISITORS_MAX);
        // By chance, not by order; that all who stay are the last happens never.
        assert!(stay[..9 * VISITORS_MAX].contains(&true));
        drop(visitors);
        assert_eq!(door.count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_one_waits_until_those_turned_away_have_left() {
        let door = Door::default();
        let mut visitors: Vec<_> = (0..VISITORS_MAX + LEAVING_MAX - 1).map(|_| door.enter()).collect();
        let start = tokio::time::Instant::now();
        door.room().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        visitors.push(door.enter());
        let mut next = std::pin::pin!(door.room());
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        assert!(next.as_mut().poll(cx).is_pending());
        let gone = visitors.iter().position(|visitor| visitor.visit.away.is_cancelled()).unwrap();
        drop(visitors.swap_remove(gone));
        assert!(next.as_mut().poll(cx).is_ready());
        // Who was admitted is no visitor any more, and nobody waits for ever.
        visitors.push(door.enter());
        visitors.last().unwrap().admit();
        door.room().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        visitors.push(door.enter());
        door.room().await;
        assert_eq!(start.elapsed(), LEAVING_TIME);
    }
}
