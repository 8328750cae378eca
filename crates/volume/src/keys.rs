//! Keys: one of each volume, derived from its account's, for what lies in the bucket.
//!
//! ```text
//! account key --HKDF, volume's id--> volume key --HKDF, segment's name--> key of that segment
//!                                               --HKDF, object's path---> key of that object
//! ```
//!
//! All are [`SecretKey`]s, as are what others put in the place of a volume's for objects that are no volume's.
//!
//! The cipher is AES-256-GCM-SIV. Every object has a key of its own and every part of it a nonce of its own. The name of an
//! object decides the key, so an object at another name does not decrypt. If a process dies and the next one of the same
//! epoch puts other blocks under the same name, two texts have been encrypted alike; with this cipher, that tells whoever
//! saw both only whether they are equal, where GCM without SIV would give the text away. It costs no salt to keep either.
//!
//! On a worker's disk nothing is encrypted: journal, cache and map are as readable as the mounted filesystem itself.

use crate::{Encrypted, VolumeId, segment::SegmentName};
use aes_gcm_siv::{
    Aes256GcmSiv, Nonce, Tag,
    aead::{AeadInOut as _, KeyInit as _},
};
use hkdf::Hkdf;
use object_store::{ObjectStore, path::Path};
use sha2::Sha256;
use std::{collections::HashMap, fmt, sync::Arc};
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;

/// What encrypting adds to a part.
pub(crate) const TAG_BYTES: usize = 16;

/// Tells this use of an account's key from every other.
const VOLUME: &[u8] = b"puck volume key 1";

/// A key of 32 random bytes, or one that was derived from such. Its memory is wiped when it is dropped, and it is never
/// printed.
#[derive(Clone)]
pub struct SecretKey(Zeroizing<[u8; KEY_BYTES]>);

impl SecretKey {
    /// The key of these bytes, as it was made at random, or given to a machine that must not know what it derives from.
    #[must_use]
    pub fn from_bytes(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; KEY_BYTES]> {
        self.0.clone()
    }

    /// The key of a volume of the account whose key this is.
    #[must_use]
    pub fn of_volume(&self, volume: VolumeId) -> Self {
        self.derive(VOLUME, volume.0.as_bytes())
    }

    /// The key for one use of this one. No two uses may have the same `purpose`.
    #[must_use]
    pub fn derive(&self, purpose: &[u8], of: &[u8]) -> Self {
        let derivation = Hkdf::<Sha256>::new(Some(purpose), self.0.as_slice());
        Self(expand(&derivation, &[of]))
    }

    /// What tells this key from others without giving it away.
    #[must_use]
    pub fn id(&self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = *self.expand(&[b"id"]);
        [a, b, c, d, e, f, g, h]
    }

    /// The cipher of a segment.
    pub(crate) fn of_segment(&self, name: &SegmentName) -> Cipher {
        let (epoch, sequence) = (name.epoch.to_le_bytes(), name.sequence.to_le_bytes());
        Cipher::new(&self.expand(&[b"segment", &epoch, &sequence]))
    }

    /// The cipher of another object.
    pub(crate) fn of_object(&self, path: &Path) -> Cipher {
        Cipher::new(&self.expand(&[b"object", path.as_ref().as_bytes()]))
    }

    fn expand(&self, use_of_it: &[&[u8]]) -> Zeroizing<[u8; KEY_BYTES]> {
        let derivation =
            Hkdf::<Sha256>::from_prk(self.0.as_slice()).expect("a key is as long as the hash");
        expand(&derivation, use_of_it)
    }
}

fn expand(derivation: &Hkdf<Sha256>, use_of_it: &[&[u8]]) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    derivation
        .expand_multi_info(use_of_it, key.as_mut_slice())
        .expect("one hash can be expanded to 32 bytes");
    key
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// The keys that a volume needs: its own, with which it encrypts, and those of the ancestors that it was forked from.
#[derive(Debug, Clone, Default)]
pub struct Keys(HashMap<VolumeId, SecretKey>);

impl Keys {
    /// No key: nothing is encrypted, and nothing that is can be read.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// These and one more.
    #[must_use]
    pub fn with(mut self, volume: VolumeId, key: SecretKey) -> Self {
        self.0.insert(volume, key);
        self
    }

    /// The keys, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (VolumeId, &SecretKey)> {
        self.0.iter().map(|(volume, key)| (*volume, key))
    }

    /// The bucket as the files of a volume's log are put and got: encrypted, if the volume has a key.
    #[must_use]
    pub fn log_store(
        &self,
        volume: VolumeId,
        bucket: Arc<dyn ObjectStore>,
    ) -> Arc<dyn ObjectStore> {
        match self.0.get(&volume) {
            Some(key) => Arc::new(Encrypted::new(bucket, key.clone())),
            None => bucket,
        }
    }

    /// The cipher of a segment, if its volume has a key.
    pub(crate) fn of_segment(&self, name: &SegmentName) -> Option<Cipher> {
        self.0.get(&name.volume).map(|key| key.of_segment(name))
    }
}

/// The cipher of one object.
pub(crate) struct Cipher(Aes256GcmSiv);

/// The bytes are not what was encrypted with this key, for this name and this part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these bytes were not encrypted with this key under this name")]
pub(crate) struct WrongKey;

impl Cipher {
    fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self(Aes256GcmSiv::new(key.into()))
    }

    /// Encrypts a part in its place, and appends the tag. `clear` is authenticated and stays readable.
    pub(crate) fn encrypt(&self, part: u32, clear: &[u8], text: &mut Vec<u8>) {
        let tag = self
            .0
            .encrypt_inout_detached(&nonce(part), clear, text.as_mut_slice().into())
            .expect("a part is far below what the cipher can take");
        text.extend_from_slice(&tag);
    }

    /// What was encrypted.
    pub(crate) fn decrypt(
        &self,
        part: u32,
        clear: &[u8],
        encrypted: &[u8],
    ) -> Result<Vec<u8>, WrongKey> {
        let (text, tag) = encrypted
            .len()
            .checked_sub(TAG_BYTES)
            .map(|length| encrypted.split_at(length))
            .ok_or(WrongKey)?;
        let tag = Tag::try_from(tag).map_err(|_length| WrongKey)?;
        let mut text = text.to_vec();
        self.0
            .decrypt_inout_detached(&nonce(part), clear, text.as_mut_slice().into(), &tag)
            .map_err(|_opaque| WrongKey)?;
        Ok(text)
    }
}

/// The nonce of a part: its number. No two parts of an object have the same, and no two objects the same key.
fn nonce(part: u32) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[..4].copy_from_slice(&part.to_le_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::{Keys, SecretKey, TAG_BYTES, WrongKey};
    use crate::{VolumeId, segment::SegmentName};

    #[test]
    fn every_volume_segment_and_part_is_encrypted_for_itself() {
        let (one, other) = (VolumeId::now(), VolumeId::now());
        let account = |byte| SecretKey::from_bytes([byte; 32].into());
        let key = account(7).of_volume(one);
        assert_ne!(key.id(), account(7).of_volume(other).id());
        assert_ne!(key.id(), account(8).of_volume(one).id());
        assert_ne!(key.id(), account(7).derive(b"another use", one.0.as_bytes()).id());
        assert_eq!(key.id(), SecretKey::from_bytes(key.to_bytes()).id());
        let name = SegmentName { volume: one, epoch: 1, sequence: 2 };
        let cipher = key.of_segment(&name);
        let mut text = b"hello".to_vec();
        cipher.encrypt(3, b"clear", &mut text);
        assert_eq!(text.len(), 5 + TAG_BYTES);
        assert_eq!(cipher.decrypt(3, b"clear", &text).unwrap(), b"hello");
        assert_eq!(cipher.decrypt(4, b"clear", &text), Err(WrongKey));
        assert_eq!(cipher.decrypt(3, b"other", &text), Err(WrongKey));
        assert_eq!(cipher.decrypt(3, b"clear", &text[..10]), Err(WrongKey));
        let next = key.of_segment(&SegmentName { sequence: 3, ..name });
        assert_eq!(next.decrypt(3, b"clear", &text), Err(WrongKey));
        assert!(Keys::none().of_segment(&name).is_none());
        assert!(Keys::none().with(one, key).of_segment(&name).is_some());
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = SecretKey::from_bytes([0xab; 32].into());
        let keys = Keys::none().with(VolumeId::now(), key);
        let printed = format!("{keys:?}");
        assert!(!printed.contains("171") && !printed.contains("ab, "), "{printed}");
    }
}
