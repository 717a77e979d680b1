//! Follows the sources that told something: one task each, which says what changed; [`Watch::next`] puts it together.
//!
//! States of a follower: listed → watching → (refused, or too old: 410) to be listed again. It never ends by itself.

use std::collections::BTreeSet;
use std::future::pending;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::StreamExt;
use ipnet::IpNet;
use kshuttle_helper::plan::MAX_INCLUDE;
use kube::core::{DynamicObject, WatchEvent};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::fading::Fading;
use super::said::Said;
use super::search::Told;
use super::source::{Feed, ListError, Sayings, WATCH_SECONDS, name};
use crate::cluster::api_error::ApiError;

/// Changes that come within this are one: a rollout or a new node makes many at once, and each new set costs a change of
/// the rules. Short for somebody who connects to what they have just made.
const COALESCE: Duration = Duration::from_millis(200);
/// Changes that wait to be taken in; when they are more, the watches wait.
const NEWS_MAX: usize = 256;
/// An API server ends a watch itself; when it is this late the connection is dead.
const SILENCE_MAX: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);
/// Pauses before a watch is begun again.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(500))
    .with_max_delay(PAUSE_MAX)
    .with_jitter()
    .without_max_times();
/// As controllers of Kubernetes wait at most (client-go's reflector): with these pauses lists replace a forbidden watch, too.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The ranges as they change. Dropping it ends the watches.
#[derive(Debug)]
pub struct Watch {
    /// What each source says now.
    sayings: Vec<Sayings>,
    /// What nobody follows.
    fixed: Vec<IpNet>,
    fading: Fading,
    /// What was yielded last.
    last: Vec<IpNet>,
    /// They are more than can be redirected now, which was told.
    too_many: bool,
    /// When changes that were taken in are put together. Here and not in `next`, so that a call that is given up loses nothing.
    due: Option<Instant>,
    news: mpsc::Receiver<News>,
    /// Of which each follower has a clone; so `news` stays open also when there is none.
    sender: mpsc::Sender<News>,
    followers: JoinSet<()>,
}

/// Something that a source says anew.
#[derive(Debug)]
struct News {
    /// Which source.
    at: usize,
    change: Change,
}

#[derive(Debug)]
enum Change {
    /// All there is.
    Whole(Sayings),
    /// An object is new, or says something else.
    Says(String, Said),
    /// An object is gone.
    Gone(String),
}

impl Watch {
    /// Begins where the sources were read.
    pub(super) fn start(told: Vec<Told>, fixed: Vec<IpNet>) -> Self {
        let (sender, news) = mpsc::channel(NEWS_MAX);
        let mut watch = Self {
            sayings: Vec::new(),
            fixed,
            fading: Fading::default(),
            last: Vec::new(),
            too_many: false,
            due: None,
            news,
            sender,
            followers: JoinSet::new(),
        };
        for (at, Told { feed, listing, .. }) in told.into_iter().enumerate() {
            watch.sayings.push(listing.sayings);
            let news = watch.sender.clone();
            let follower = Follower { at, feed, version: Some(listing.version), heard: false, news };
            watch.followers.spawn(follower.follow());
        }
        watch.last = watch.put_together();
        watch
    }

    /// What was found at the start, then what [`Watch::next`] yielded last: neighbours joined, sorted.
    pub fn ranges(&self) -> &[IpNet] {
        &self.last
    }

    /// Waits until the ranges change, and yields all of them. What vanished is in there for another 60 s, except for what
    /// turned out to be a node itself. It never ends; a source that cannot be asked keeps what it said last. Cancel-safe.
    pub async fn next(&mut self) -> Vec<IpNet> {
        loop {
            // Several graces that end together are one change, too.
            let due = self.due.or_else(|| self.fading.next_end().map(|end| end + COALESCE));
            let is_due = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                () = is_due => {
                    self.due = None;
                    let ranges = self.put_together();
                    let (count, had) = (ranges.len(), self.too_many);
                    self.too_many = count > MAX_INCLUDE;
                    if self.too_many && !had {
                        tracing::warn!(count, "more separate ranges than can be redirected; the new ones are not");
                    }
                    if !self.too_many && ranges != self.last {
                        self.last.clone_from(&ranges);
                        return ranges;
                    }
                }
                Some(news) = self.news.recv() => {
                    if self.takes_in(news) {
                        self.due.get_or_insert_with(|| Instant::now() + COALESCE);
                    }
                }
            }
        }
    }

    /// True when it is something new.
    fn takes_in(&mut self, News { at, change }: News) -> bool {
        let sayings = &mut self.sayings[at];
        match change {
            Change::Whole(whole) => std::mem::replace(sayings, whole) != self.sayings[at],
            Change::Says(name, said) if said.is_empty() => sayings.remove(&name).is_some(),
            Change::Says(name, said) => sayings.insert(name.clone(), said).as_ref() != sayings.get(&name),
            Change::Gone(name) => sayings.remove(&name).is_some(),
        }
    }

    fn put_together(&mut self) -> Vec<IpNet> {
        let said = || self.sayings.iter().flat_map(|sayings| sayings.values());
        let nodes: BTreeSet<_> = said().flat_map(|said| &said.nodes).map(|node| IpNet::from(*node)).collect();
        let live = said().flat_map(|said| &said.inside).chain(&self.fixed).copied().collect();
        self.fading.update(&live, Instant::now());
        IpNet::aggregate(&self.fading.all().filter(|net| !nodes.contains(net)).copied().collect())
    }
}

struct Follower {
    at: usize,
    feed: Feed,
    /// From where the next watch goes on; none when all has to be listed first.
    version: Option<String>,
    /// The last watch was good for something.
    heard: bool,
    news: mpsc::Sender<News>,
}

impl Follower {
    async fn follow(mut self) {
        let mut pauses = PAUSES.build();
        loop {
            if let Err(error) = self.listen().await {
                tracing::debug!(source = self.feed.source.name, %error, "cannot follow");
            }
            if std::mem::take(&mut self.heard) {
                pauses = PAUSES.build();
            }
            sleep(pauses.next().unwrap_or(PAUSE_MAX)).await;
        }
    }

    /// Lists if that is needed, then watches until the watch ends.
    async fn listen(&mut self) -> Result<(), ListError> {
        let version = match &self.version {
            Some(version) => version.clone(),
            None => {
                let listing = self.feed.list().await?;
                self.tell(Change::Whole(listing.sayings)).await;
                self.version.insert(listing.version).clone()
            }
        };
        let events = match self.feed.watch(&version).await {
            Ok(events) => events,
            Err(error) => {
                // What is refused may be too old, or allowed to be listed only.
                if !matches!(error, ApiError::Transport(_) | ApiError::Timeout(_)) {
                    self.version = None;
                }
                return Err(error.into());
            }
        };
        let mut events = std::pin::pin!(events);
        while let Ok(Some(event)) = timeout(SILENCE_MAX, events.next()).await {
            match event.map_err(ApiError::from)? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.hears(&object);
                    self.tell(Change::Says(name(&object), (self.feed.source.says)(&object))).await;
                }
                WatchEvent::Deleted(object) => {
                    self.hears(&object);
                    self.tell(Change::Gone(name(&object))).await;
                }
                WatchEvent::Bookmark(mark) => self.version = Some(mark.metadata.resource_version),
                WatchEvent::Error(status) => {
                    self.version = None;
                    return Err(ApiError::from_status(&status).into());
                }
            }
        }
        self.heard = true;
        Ok(())
    }

    fn hears(&mut self, object: &DynamicObject) {
        self.heard = true;
        self.version.clone_from(&object.metadata.resource_version);
    }

    /// Waits while there is too much that was not taken in. When nobody takes anything any more, this task is ended.
    async fn tell(&self, change: Change) {
        let _ = self.news.send(News { at: self.at, change }).await;
    }
}

#[cfg(test)]
mod tests;
