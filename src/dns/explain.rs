//! `kshuttle dns NAME`: what happens to a question, for people.

use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::answer::{Asked, Outcome, Reply};
use super::message::{Answer, Head};
use super::sockets::Sockets;
use super::{LIMIT, Stub, Transport, Upstream};
use crate::tunnel::Connect;

/// What happened to a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The name, absolute.
    pub name: String,
    /// What was asked for: `A`, `AAAA`, `SRV`, …
    pub kind: String,
    /// Why it goes where it goes; a sentence.
    pub why: String,
    /// Who was asked last, and so gave the answer.
    pub asked: String,
    /// Whether that is the cluster, now or earlier.
    pub ours: bool,
    /// Whether the answer was kept from before.
    pub held: bool,
    /// `No Error`, `Non-Existent Domain`, …
    pub code: String,
    /// The records of the answer, as in a zone file.
    pub records: Vec<String>,
    /// How long it took.
    pub time: Duration,
}

impl Explanation {
    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let whose = if self.ours { "the cluster's" } else { "not the cluster's" };
        let time = self.time.as_secs_f64() * 1e3;
        let mut lines = vec![
            format!("{} {}", self.name, self.kind),
            format!("  whose     {whose}: {}", self.why),
            format!("  asked     {}", self.asked),
            format!("  answer    {}  ({time:.1} ms)", self.code),
        ];
        lines.extend(self.records.iter().map(|record| format!("            {record}")));
        lines
    }
}

/// Why there is nothing to explain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// Not a name.
    #[error("not a DNS name")]
    Name,
    /// Not a type of records.
    #[error("not a type of DNS records, like A, AAAA or SRV")]
    Kind,
}

impl<C: Connect, S: Sockets> Stub<C, S> {
    /// Asks as a program would by TCP, and tells what happened. Nothing is added to `name`: no search list, as with a dot at
    /// its end.
    ///
    /// # Errors
    /// When there is no such question.
    pub async fn explain(
        &self,
        name: &str,
        kind: &str,
        upstream: &Upstream,
    ) -> Result<Explanation, ExplainError> {
        let mut asked_for = Name::from_utf8(name).map_err(|_| ExplainError::Name)?;
        asked_for.set_fqdn(true);
        let kind: RecordType = kind.to_ascii_uppercase().parse().map_err(|_| ExplainError::Kind)?;
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(asked_for.clone(), kind));
        let query = message.to_vec().map_err(|_| ExplainError::Name)?;
        let head = Head::read(&query).map_err(|_| ExplainError::Name)?;

        let started = Instant::now();
        let found = timeout(LIMIT, self.resolve(&query, &head, Transport::Tcp, upstream)).await;
        let Outcome { verdict, reply, asked } = found.unwrap_or_else(|_| Outcome {
            verdict: self.0.zones.borrow().whose(&asked_for, kind),
            reply: Reply::Ours(ResponseCode::ServFail.into()),
            asked: Asked::Upstream(None),
        });
        let answer = match reply {
            Reply::Ours(answer) => answer,
            Reply::Theirs(bytes) => {
                // Passed on as it is, but not of a kind that we could tell about.
                Message::from_vec(&bytes).map_or_else(|_| ResponseCode::FormErr.into(), Answer::from)
            }
        };
        Ok(Explanation {
            name: asked_for.to_utf8(),
            kind: kind.to_string(),
            why: verdict.why.to_string(),
            ours: matches!(asked, Asked::Cluster(_) | Asked::Held(_)),
            held: matches!(asked, Asked::Held(_)),
            asked: asked.to_string(),
            code: answer.code.to_string(),
            records: answer.answers.iter().map(ToString::to_string).collect(),
            time: started.elapsed(),
        })
    }
}
