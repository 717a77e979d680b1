//! Commands that ask sessions which run, and the look-up that one of them starts.

use std::net::ToSocketAddrs as _;

use anyhow::Context;

use crate::cli::{DnsArgs, LookUpArgs, Output, QuitArgs, StatusArgs};
use crate::control::registry::{Found, sessions};
use crate::control::socket::{AskError, ask};
use crate::control::{Answer, Request, Status};
use crate::report;

/// `kshuttle status`: how the sessions of this user are.
///
/// # Errors
/// When the one that is named is not there or does not answer.
pub async fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for Found { name, socket } in wanted(args.name.as_deref())? {
        match ask(&name, &socket, Request::Status).await {
            Ok(Answer::Status(status)) => all.push(status),
            Ok(_) => return Err(AskError::Strange(name).into()),
            // It has just ended.
            Err(AskError::Io { .. }) if args.name.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    match args.output {
        Some(Output::Json) => report::answer(serde_json::to_string_pretty(&all).context("write JSON")?),
        None if all.is_empty() => report::answer("no session"),
        None => all.iter().flat_map(Status::lines).for_each(report::answer),
    }
    Ok(())
}

/// `kshuttle dns`: what a session makes of a name.
///
/// # Errors
/// When it is not clear which session, it does not answer, or the name is none.
pub async fn dns(args: &DnsArgs) -> anyhow::Result<()> {
    let found = wanted(args.session.as_deref())?;
    let [Found { name, socket }] = &found[..] else { anyhow::bail!(not_one(&found, "--session names one")) };
    let request = Request::Dns { name: args.name.clone(), kind: args.kind.clone() };
    let explanation = match ask(name, socket, request).await? {
        Answer::Dns(explanation) => explanation,
        Answer::Error(why) => anyhow::bail!("session {name}: {why}"),
        _ => return Err(AskError::Strange(name.clone()).into()),
    };
    match args.output {
        Some(Output::Json) => {
            report::answer(serde_json::to_string_pretty(&explanation).context("write JSON")?);
        }
        None => explanation.lines().iter().for_each(report::answer),
    }
    Ok(())
}

/// `kshuttle look-up`: asks the C library, as most programs do.
///
/// # Errors
/// When it does not find the name.
pub fn look_up(args: &LookUpArgs) -> anyhow::Result<()> {
    let found =
        (args.name.as_str(), 0).to_socket_addrs().with_context(|| format!("look {} up", args.name))?;
    found.for_each(|address| report::answer(address.ip()));
    Ok(())
}

/// `kshuttle quit`: ends a session in order.
///
/// # Errors
/// When it is not clear which, or it does not answer.
pub async fn quit(args: &QuitArgs) -> anyhow::Result<()> {
    let found = wanted(args.name.as_deref())?;
    let [Found { name, socket }] = &found[..] else { anyhow::bail!(not_one(&found, "name one")) };
    match ask(name, socket, Request::Quit).await? {
        Answer::Ending => {
            report::answer(format_args!("session {name} ends"));
            Ok(())
        }
        _ => Err(AskError::Strange(name.clone()).into()),
    }
}

/// The sessions with this name, or all.
fn wanted(name: Option<&str>) -> anyhow::Result<Vec<Found>> {
    let found: Vec<_> =
        sessions().into_iter().filter(|found| name.is_none_or(|name| name == found.name)).collect();
    match name {
        Some(name) if found.is_empty() => anyhow::bail!("no session {name}"),
        _ => Ok(found),
    }
}

/// None or several, where one is needed.
fn not_one(found: &[Found], hint: &str) -> String {
    if found.is_empty() {
        return "no session".to_owned();
    }
    let names: Vec<_> = found.iter().map(|found| found.name.as_str()).collect();
    format!("there are {} sessions ({}); {hint}", found.len(), names.join(", "))
}
