//! Who we are to the pod, and the pod to us: one key pair per run, one host key per pod.

use std::sync::{Arc, OnceLock};

use russh::keys::ssh_key::{self, LineEnding};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey};

/// The key pair of this run. It never leaves memory; its public half travels in the pod's manifest.
#[derive(Clone)]
pub struct Identity {
    key: Arc<PrivateKey>,
}

impl Identity {
    /// Makes a new Ed25519 key pair.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, ssh_key::Error> {
        let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519)?;
        Ok(Self { key: Arc::new(key) })
    }

    /// The public half as an `authorized_keys` line.
    ///
    /// # Errors
    /// Never for an Ed25519 key; the encoder's signature says it could.
    pub fn authorized_key(&self) -> Result<String, ssh_key::Error> {
        self.key.public_key().to_openssh()
    }

    /// The private half in OpenSSH's format, for tests that log in with a stock client.
    ///
    /// # Errors
    /// Never for an Ed25519 key; the encoder's signature says it could.
    pub fn to_openssh(&self) -> Result<String, ssh_key::Error> {
        Ok(self.key.to_openssh(LineEnding::LF)?.to_string())
    }

    pub(super) fn private_key(&self) -> Arc<PrivateKey> {
        self.key.clone()
    }
}

/// The host key of one pod. The pod makes it in memory when it starts, so nobody can know it before; the first
/// connection, made through the API server and kubelet that own the pod anyway, pins it, and every later one to the
/// same pod must show the same key.
#[derive(Clone, Default)]
pub struct HostKey {
    pinned: Arc<OnceLock<PublicKey>>,
}

impl HostKey {
    /// Whether `key` is the pod's: the first one is, by definition.
    pub(super) fn accepts(&self, key: &PublicKey) -> bool {
        self.pinned.get_or_init(|| key.clone()).key_data() == key.key_data()
    }

    /// Fingerprint of the pinned key (`SHA256:…`), once there is one.
    pub fn fingerprint(&self) -> Option<String> {
        self.pinned.get().map(|key| key.fingerprint(HashAlg::Sha256).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_host_key_is_pinned() {
        let key = || Identity::generate().unwrap().private_key().public_key().clone();
        let (first, second) = (key(), key());
        let host_key = HostKey::default();
        assert!(host_key.fingerprint().is_none());
        assert!(host_key.accepts(&first));
        assert!(!host_key.accepts(&second));
        assert!(host_key.accepts(&first));
        assert!(host_key.fingerprint().unwrap().starts_with("SHA256:"));
    }
}
