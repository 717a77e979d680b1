//! What the pod's manifest says, from the environment.

use std::time::Duration;

use russh::keys::PublicKey;

/// Port on the pod's loopback when none is named.
pub const DEFAULT_PORT: u16 = 2222;

/// Time without a logged-in client after which the server exits, when none is named.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(300);

/// The server's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The one key that may log in (`KSHUTTLE_AUTHORIZED_KEY`, an `authorized_keys` line without options).
    pub authorized_key: PublicKey,
    /// Port on 127.0.0.1 (`KSHUTTLE_LISTEN_PORT`); 0 lets the kernel choose.
    pub port: u16,
    /// Time without a logged-in client after which the server exits (`KSHUTTLE_IDLE_SECONDS`).
    pub idle: Duration,
    /// Somebody holds it by its standard streams (`KSHUTTLE_ATTENDED`, any value): [`crate::attended`].
    pub attended: bool,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It must be set.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// Its value is not what it must be.
    #[error("{name} is not {expected}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

impl Settings {
    /// Reads the settings through `get`, which looks a variable up.
    ///
    /// # Errors
    /// When the key is missing or a value is malformed.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let key_name = "KSHUTTLE_AUTHORIZED_KEY";
        let key = get(key_name).ok_or(SettingsError::Missing(key_name))?;
        let authorized_key = PublicKey::from_openssh(key.trim())
            .map_err(|_| SettingsError::Invalid { name: key_name, expected: "an OpenSSH public key" })?;
        let number = |name: &'static str, expected| {
            get(name)
                .map(|v| v.trim().parse::<u64>().map_err(|_| SettingsError::Invalid { name, expected }))
                .transpose()
        };
        let port = number("KSHUTTLE_LISTEN_PORT", "a port number")?
            .map(u16::try_from)
            .transpose()
            .map_err(|_| SettingsError::Invalid { name: "KSHUTTLE_LISTEN_PORT", expected: "a port number" })?
            .unwrap_or(DEFAULT_PORT);
        let idle =
            number("KSHUTTLE_IDLE_SECONDS", "a number of seconds")?.map_or(DEFAULT_IDLE, Duration::from_secs);
        Ok(Self { authorized_key, port, idle, attended: get("KSHUTTLE_ATTENDED").is_some() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ x";

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::read(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn defaults_and_values() {
        let settings = read(&[("KSHUTTLE_AUTHORIZED_KEY", KEY)]).unwrap();
        assert_eq!((settings.port, settings.idle), (DEFAULT_PORT, DEFAULT_IDLE));
        let settings = read(&[
            ("KSHUTTLE_AUTHORIZED_KEY", KEY),
            ("KSHUTTLE_LISTEN_PORT", "0"),
            ("KSHUTTLE_IDLE_SECONDS", "5"),
        ])
        .unwrap();
        assert_eq!((settings.port, settings.idle), (0, Duration::from_secs(5)));
    }

    #[test]
    fn bad_settings_name_the_variable() {
        for (pairs, name) in [
            (&[][..], "KSHUTTLE_AUTHORIZED_KEY"),
            (&[("KSHUTTLE_AUTHORIZED_KEY", "nonsense")], "KSHUTTLE_AUTHORIZED_KEY"),
            (&[("KSHUTTLE_AUTHORIZED_KEY", KEY), ("KSHUTTLE_LISTEN_PORT", "65536")], "KSHUTTLE_LISTEN_PORT"),
            (&[("KSHUTTLE_AUTHORIZED_KEY", KEY), ("KSHUTTLE_IDLE_SECONDS", "-1")], "KSHUTTLE_IDLE_SECONDS"),
        ] {
            assert!(read(pairs).unwrap_err().to_string().contains(name));
        }
    }
}
