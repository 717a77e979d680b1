//! Linux: the link is one end of a veth pair, and resolved is told by its own program.
//!
//! Make: is resolved there? → the pair ([`holder`]) → an address, up → resolved has seen it → settings →
//! resolved uses it. Change: all settings, whatever somebody else has made of them. End: the link, and resolved forgets what it was told; resolved is not
//! asked for that, because it may have been stopped meanwhile, and asking could start it.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;

use super::settings::{self, Settings};
use crate::firewall::program::{self, IP, RESOLVECTL};
use crate::holder::{self, Holder, Life};
use crate::protocol;

/// The link's address: resolved uses no link without one. This is IPv4's dummy address (RFC 7600 §6), nobody's and the same on
/// every link; nothing is sent from it or to it.
const ADDRESS: &str = "192.0.0.8/32";

/// How long resolved may take to see and to use a link. It takes milliseconds; a loaded machine, a hundred times that.
const SEEN_PATIENCE: Duration = Duration::from_secs(5);

/// How long between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why resolved does not ask us.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// What was said is refused.
    #[error("the link's settings are refused")]
    Settings(#[from] settings::Error),
    /// Nobody to tell.
    #[error("systemd-resolved does not answer")]
    NoResolved(#[source] program::Error),
    /// No link.
    #[error(transparent)]
    Holder(#[from] holder::Error),
    /// It stays down.
    #[error("bringing the link up failed")]
    Up(#[source] program::Error),
    /// resolved does not take the settings.
    #[error("telling systemd-resolved about the link failed")]
    Tell(#[source] program::Error),
    /// resolved was told and does not act.
    #[error("systemd-resolved does not use the link after {patience} s", patience = SEEN_PATIENCE.as_secs())]
    NotUsed,
    /// New settings are refused, and the old ones, too.
    #[error(
        "telling systemd-resolved about the link failed, and its old settings could not be restored: {0}"
    )]
    Lost(String, #[source] program::Error),
    /// It stays.
    #[error("deleting the link failed")]
    Delete(#[source] program::Error),
    /// The copy that holds it.
    #[error("ending the link's holder failed")]
    End(#[source] io::Error),
}

/// A link that stands.
#[derive(Debug)]
pub(super) struct Link {
    name: String,
    settings: Settings,
    holder: Holder,
}

impl Link {
    /// Makes it and has resolved use it, or leaves nothing.
    pub(super) fn make(name: String, said: &protocol::Link) -> Result<Self, Error> {
        let settings = Settings::check(said)?;
        RESOLVECTL.run(&["dns"], "").map_err(Error::NoResolved)?;
        let holder = Holder::start(&name, Life::OfHelper)?;
        let link = Self { name, settings, holder };
        match link.put_in_use() {
            Ok(()) => Ok(link),
            Err(error) => {
                let _ = link.end(); // the first failure is the one to report
                Err(error)
            }
        }
    }

    /// Other settings; on an error the old ones stand.
    pub(super) fn change(&mut self, said: &protocol::Link) -> Result<(), Error> {
        let settings = Settings::check(said)?;
        if let Err(error) = tell(&settings.commands(&self.name)) {
            return Err(match tell(&self.settings.commands(&self.name)) {
                Ok(()) => Error::Tell(error),
                Err(more) => Error::Lost(more.to_string(), error),
            });
        }
        self.settings = settings;
        Ok(())
    }

    /// Is it still there? Its holder may have been killed, or somebody else have deleted it.
    pub(super) fn stands(&self) -> bool {
        if_nametoindex(self.name.as_str()).is_ok()
    }

    /// Takes it away; the steps that failed, and why.
    pub(super) fn end(self) -> Vec<(&'static str, Error)> {
        let deleted = match IP.run(&["link", "delete", "dev", &self.name], "") {
            Err(error) if self.stands() => Err(Error::Delete(error)),
            _ => Ok(()), // deleted by us, or by somebody else before
        };
        let ended = self.holder.end().map_err(Error::End);
        [("link", deleted), ("holder", ended)]
            .into_iter()
            .filter_map(|(step, result)| result.err().map(|error| (step, error)))
            .collect()
    }

    fn put_in_use(&self) -> Result<(), Error> {
        let name = &self.name;
        let commands = format!(
            "link set {name} addrgenmode none\naddress add {ADDRESS} dev {name}\nlink set {name} up\n"
        );
        IP.run(&["-batch", "-"], &commands).map_err(Error::Up)?;
        self.wait_until(|_| true)?; // resolved hears of links from the kernel, a little later than we
        tell(&self.settings.commands(name)).map_err(Error::Tell)?;
        self.wait_until(is_used)
    }

    /// Asks resolved about the link until it says so.
    fn wait_until(&self, is_so: impl Fn(&str) -> bool) -> Result<(), Error> {
        let deadline = Instant::now() + SEEN_PATIENCE;
        loop {
            let status = RESOLVECTL.run(&["status", &self.name], "");
            match status {
                Ok(said) if is_so(&said) => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(Error::Tell(error)),
                _ if Instant::now() >= deadline => return Err(Error::NotUsed),
                _ => thread::sleep(LOOK_AGAIN),
            }
        }
    }
}

fn tell(commands: &[Vec<String>]) -> Result<(), program::Error> {
    for command in commands {
        let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        RESOLVECTL.run(&arguments, "")?;
    }
    Ok(())
}

/// In the words of `resolvectl status LINK` since its first version; instead of `DNS` it says `none`.
fn is_used(status: &str) -> bool {
    let scopes = status.lines().find_map(|line| line.trim().strip_prefix("Current Scopes:"));
    scopes.is_some_and(|scopes| scopes.split_whitespace().any(|scope| scope == "DNS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_used_when_it_has_a_scope_for_dns() {
        let status = |scopes: &str| format!("Link 4 (kdns7)\n    Current Scopes: {scopes}\nDNS Servers: x\n");
        assert!(is_used(&status("DNS")) && is_used(&status("LLMNR/IPv4 DNS")));
        assert!(!is_used(&status("none")) && !is_used(&status("")) && !is_used("Link 4 (kdns7)\n"));
    }
}
