//! Who we are to the pod, and the pod to us: one key pair per run (or the user's own), one host key per pod.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use russh::keys::ssh_key::{self, LineEnding};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey};

/// A key pair. That of a run leaves memory only into files of its user that go with its pod (`session::ticket`,
/// `ssh-config`); its public half travels in the pod's manifest.
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

    /// Reads a private key that is not encrypted, in OpenSSH's format or as PEM.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn read(file: &Path) -> Result<Self, IdentityError> {
        let error = |source| IdentityError::Read { file: file.display().to_string(), source };
        let key = russh::keys::load_secret_key(file, None).map_err(|source| match source {
            russh::keys::Error::KeyIsEncrypted => IdentityError::Encrypted(file.display().to_string()),
            source => error(source),
        })?;
        Ok(Self { key: Arc::new(key) })
    }

    /// What [`to_openssh`](Self::to_openssh) wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn from_openssh(text: &str) -> Result<Self, ssh_key::Error> {
        Ok(Self { key: Arc::new(PrivateKey::from_openssh(text)?) })
    }

    /// The public half as an `authorized_keys` line.
    ///
    /// # Errors
    /// Never for an Ed25519 key; the encoder's signature says it could.
    pub fn authorized_key(&self) -> Result<String, ssh_key::Error> {
        self.key.public_key().to_openssh()
    }

    /// The private half in OpenSSH's format.
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

/// Why the user's key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Unreadable, or of a kind unknown here.
    #[error("read the private key {file}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: russh::keys::Error,
    },
    /// There is nobody to ask for its password.
    #[error("the private key {0} is encrypted")]
    Encrypted(String),
}

/// The host key of one pod. The pod makes it in memory when it starts, so nobody can know it before; the first
/// connection, made through the API server and kubelet that own the pod anyway, pins it, and every later one to the
/// same pod must show the same key. Of servers that live longer it may be known beforehand.
#[derive(Clone, Default)]
pub struct HostKey {
    pinned: Arc<OnceLock<PublicKey>>,
}

impl HostKey {
    /// One that is known.
    pub fn known(key: PublicKey) -> Self {
        Self { pinned: Arc::new(OnceLock::from(key)) }
    }

    /// The pinned key, once there is one.
    pub fn pinned(&self) -> Option<&PublicKey> {
        self.pinned.get()
    }

    /// Whether `key` is the pod's: the first one is, by definition.
    pub(super) fn accepts(&self, key: &PublicKey) -> bool {
        self.pinned.get_or_init(|| key.clone()).key_data() == key.key_data()
    }

    /// What to ask the server for, if it has keys of several kinds: the one that is known.
    pub(super) fn algorithms(&self) -> Option<Cow<'static, [Algorithm]>> {
        self.pinned.get().map(|key| Cow::Owned(vec![key.algorithm()]))
    }

    /// Fingerprint of the pinned key (`SHA256:…`), once there is one.
    pub fn fingerprint(&self) -> Option<String> {
        self.pinned.get().map(|key| key.fingerprint(HashAlg::Sha256).to_string())
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostKey").field(&self.fingerprint()).finish()
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
