//! The way of a question, from its bytes to those of its answer.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hickory_proto::op::{OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use tokio::time::timeout;

use super::cache::{Cache, Key};
use super::message::{self, Answer, Client, Head, Unreadable};
use super::sockets::Sockets;
use super::zone::{Verdict, Way};
use super::{Canary, LIMIT, Stub, Transport, Upstream};
use crate::tunnel::Connect;

/// How long the cluster may take to say whether it has a name that others may have, too: the other half is theirs.
const PERHAPS_LIMIT: Duration = Duration::from_millis(1_400);

/// Where a query came from.
pub(super) struct Arrival {
    pub(super) transport: Transport,
    pub(super) from: SocketAddr,
    /// The front's address.
    pub(super) at: SocketAddr,
}

/// What became of a question.
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    pub(super) reply: Reply,
    pub(super) asked: Asked,
}

/// An answer.
pub(super) enum Reply {
    /// To be encoded for who asked.
    Ours(Answer),
    /// To be passed on as it is.
    Theirs(Bytes),
}

/// Who gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// It was clear without asking.
    Nobody,
    /// The cluster, earlier.
    Held(Name),
    /// The cluster now, for this name.
    Cluster(Name),
    /// A server of `--dns-zone`.
    Server(SocketAddr),
    /// One of the system's own servers; none where none answered.
    Upstream(Option<SocketAddr>),
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => write!(f, "nobody"),
            Self::Held(name) => write!(f, "the cluster, earlier, for {name}"),
            Self::Cluster(name) => write!(f, "the cluster for {name}"),
            Self::Server(server) => write!(f, "{server} through the tunnel"),
            Self::Upstream(Some(server)) => write!(f, "{server}, a server of this machine's own"),
            Self::Upstream(None) => write!(f, "this machine's own servers, without an answer"),
        }
    }
}

/// What counts for one question of what is known about the cluster.
struct Facts {
    domain: Name,
    servers: Vec<SocketAddr>,
    ipv6: bool,
}

impl<C: Connect, S: Sockets> Stub<C, S> {
    /// Answers what came to a front; none where there must be no answer.
    pub(super) async fn answer(
        &self,
        query: &[u8],
        arrival: &Arrival,
        upstream: &Upstream,
    ) -> Option<Vec<u8>> {
        let transport = arrival.transport;
        let head = match Head::read(query) {
            Ok(head) => head,
            Err(Unreadable::Silence) => return None,
            Err(Unreadable::Form(_)) => return message::failure(query, ResponseCode::FormErr, transport),
        };
        if self.0.relay.is_own(transport, arrival.from, query) {
            tracing::warn!(at = %arrival.at, %transport, "a question of our own came back: something redirects it");
            self.0.looped.send_modify(|looped| *looped += 1);
            return message::failure(query, ResponseCode::Refused, transport);
        }
        let Ok(outcome) = timeout(LIMIT, self.resolve(query, &head, transport, upstream)).await else {
            tracing::debug!(name = %head.question.name, "no answer in time");
            return message::failure(query, ResponseCode::ServFail, transport);
        };
        let Outcome { verdict, reply, asked } = outcome;
        tracing::trace!(name = %head.question.name, kind = %head.question.query_type, why = %verdict.why, %asked, "answered");
        if verdict.way == Way::Stub {
            let nonce = head.question.name.iter().next().unwrap_or_default();
            let nonce = String::from_utf8_lossy(nonce).to_ascii_lowercase();
            let _ = self.0.canaries.send(Canary { nonce, transport, at: arrival.at }); // nobody may be waiting
        }
        match reply {
            Reply::Theirs(bytes) => Some(bytes.into()),
            Reply::Ours(answer) => {
                let (question, client) = (Some(&head.question), Client::read(query));
                message::encode(&head.metadata, question, client.as_ref(), answer, transport)
                    .or_else(|| message::failure(query, ResponseCode::ServFail, transport))
            }
        }
    }

    /// Finds whose the name is, and asks there.
    pub(super) async fn resolve(
        &self,
        query: &[u8],
        head: &Head,
        transport: Transport,
        upstream: &Upstream,
    ) -> Outcome {
        let Query { name, query_type: kind, .. } = &head.question;
        let (verdict, facts) = {
            let zones = self.0.zones.borrow();
            let facts =
                Facts { domain: zones.domain.clone(), servers: zones.servers.clone(), ipv6: zones.ipv6 };
            (zones.whose(name, *kind), facts)
        };
        let ours = |answer: Answer, asked| (Reply::Ours(answer), asked);
        let known = matches!(verdict.way, Way::Stub | Way::Cluster(_) | Way::Server(_));
        let (reply, asked) = if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            // Many messages in answer to one: that is for servers among themselves.
            ours(ResponseCode::Refused.into(), Asked::Nobody)
        } else if head.question.query_class != DNSClass::IN {
            self.ask_upstream(query, head, transport, upstream).await
        } else if head.metadata.op_code != OpCode::Query && known {
            ours(ResponseCode::NotImp.into(), Asked::Nobody)
        } else if verdict.way == Way::Upstream || head.metadata.op_code != OpCode::Query {
            self.ask_upstream(query, head, transport, upstream).await
        } else {
            match Client::read(query) {
                None => ours(ResponseCode::FormErr.into(), Asked::Nobody),
                Some(client) if client.is_too_new() => ours(ResponseCode::BADVERS.into(), Asked::Nobody),
                Some(client) => {
                    let found = self.find(head, &verdict.way, &facts, client.wants_dnssec()).await;
                    match found {
                        Some((answer, asked)) => ours(answer, asked),
                        None => self.ask_upstream(query, head, transport, upstream).await,
                    }
                }
            }
        };
        Outcome { verdict, reply, asked }
    }

    /// Asks all but the system's own servers; none where these are to be asked.
    async fn find(&self, head: &Head, way: &Way, facts: &Facts, dnssec: bool) -> Option<(Answer, Asked)> {
        let Query { name, query_type: kind, .. } = &head.question;
        let failed = |asked| Some((Answer::from(ResponseCode::ServFail), asked));
        let (mut answer, asked, full) = match way {
            Way::Upstream => return None,
            Way::Stub => return Some((Answer::canary(name, *kind, &facts.domain), Asked::Nobody)),
            Way::Server(server) => {
                let found = self.ask_remote(&[*server], name, *kind, dnssec, LIMIT).await;
                let Some((mut answer, held)) = found else { return failed(Asked::Server(*server)) };
                answer.renamed(name, name); // as it was written now
                let asked = if held { Asked::Held(name.clone()) } else { Asked::Server(*server) };
                return Some((answer, asked));
            }
            Way::Cluster(full) => {
                let asked = Asked::Cluster(full.clone());
                match self.ask_remote(&facts.servers, full, *kind, dnssec, LIMIT).await {
                    Some((answer, held)) => {
                        (answer, if held { Asked::Held(full.clone()) } else { asked }, full)
                    }
                    None => return failed(asked),
                }
            }
            Way::Perhaps(full) => {
                let asked = Asked::Cluster(full.clone());
                match self.ask_remote(&facts.servers, full, *kind, dnssec, PERHAPS_LIMIT).await {
                    Some((answer, held)) if answer.code == ResponseCode::NoError => {
                        (answer, if held { Asked::Held(full.clone()) } else { asked }, full)
                    }
                    Some((answer, _)) if answer.code == ResponseCode::NXDomain => return None,
                    // It was the cluster's: nobody else is to hear of it, and their "no such name" would be kept.
                    Some(_) | None if self.cache().knows(full) => return failed(asked),
                    Some(_) | None => return None,
                }
            }
        };
        if !facts.ipv6 {
            answer.without_ipv6(*kind, &facts.domain);
        }
        answer.renamed(full, name);
        Some((answer, asked))
    }

    /// Asks servers behind the tunnel, if they have not said it already. None where they cannot be asked.
    async fn ask_remote(
        &self,
        servers: &[SocketAddr],
        name: &Name,
        kind: RecordType,
        dnssec: bool,
        limit: Duration,
    ) -> Option<(Answer, bool)> {
        let key = Key { name: name.to_lowercase(), kind, class: DNSClass::IN, dnssec };
        if let Some(held) = self.cache().get(&key) {
            return Some((held, true));
        }
        if !*self.0.up.borrow() {
            return None;
        }
        let question = Query::query(key.name.clone(), kind);
        match self.remote(servers).ask(question, dnssec, limit).await {
            Ok(message) => {
                let answer = Answer::from(message);
                self.cache().put(key, &answer);
                Some((answer, false))
            }
            Err(error) => {
                tracing::debug!(%name, error = &error as &dyn std::error::Error, "the cluster was asked in vain");
                None
            }
        }
    }

    async fn ask_upstream(
        &self,
        query: &[u8],
        head: &Head,
        transport: Transport,
        upstream: &Upstream,
    ) -> (Reply, Asked) {
        let servers = match upstream {
            Upstream::Servers(servers) => servers.borrow().clone(),
            Upstream::Server(server) => vec![*server],
        };
        match self.0.relay.ask(query, head, transport, &servers).await {
            Ok((server, answer)) => (Reply::Theirs(answer), Asked::Upstream(Some(server))),
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "no answer from outside the cluster"
                );
                (Reply::Ours(ResponseCode::ServFail.into()), Asked::Upstream(None))
            }
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // A panic while holding the lock cannot leave more than one answer too many.
        self.0.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
