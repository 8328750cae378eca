//! Keys: one of each volume, derived from its account's, for what lies in the bucket.
//!
//! ```text
//! account key --HKDF, volume's id--> volume key --HKDF, segment's name--> key of that segment
//!                                               --HKDF, object's path---> key of that object
//! ```
//!
//! The cipher is AES-256-GCM-SIV. Every object has a key of its own and every part of it a nonce of its own. The name of an
//! object decides the key, so an object at another name does not decrypt. If a process dies and the next one of the same
//! epoch puts other blocks under the same name, two texts have been encrypted alike; with this cipher, that tells whoever
//! saw both only whether they are equal, where GCM without SIV would give the text away. It costs no salt to keep either.
//!
//! On a worker's disk nothing is encrypted: journal, cache and map are as readable as the mounted filesystem itself.

use crate::{VolumeId, segment::SegmentName};
use aes_gcm_siv::{
    Aes256GcmSiv, Nonce, Tag,
    aead::{AeadInOut as _, KeyInit as _},
};
use hkdf::Hkdf;
use object_store::path::Path;
use sha2::Sha256;
use std::{collections::HashMap, fmt};
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;

/// What encrypting adds to a part.
pub(crate) const TAG_BYTES: usize = 16;

/// Tells this use of an account's key from every other.
const DERIVATION: &[u8] = b"puck volume key 1";

/// The key of one volume. Its memory is wiped when it is dropped, and it is never printed.
#[derive(Clone)]
pub struct VolumeKey(Zeroizing<[u8; KEY_BYTES]>);

impl VolumeKey {
    /// The key of a volume of an account. The account's key must be random, of at least 32 bytes.
    #[must_use]
    pub fn derive(account_key: &[u8], volume: VolumeId) -> Self {
        let derivation = Hkdf::<Sha256>::new(Some(DERIVATION), account_key);
        Self(expand(&derivation, &[volume.0.as_bytes()]))
    }

    /// A key as it was given to a machine, which must not know the account's.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key's bytes, to be given to the machine that runs the volume.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; KEY_BYTES]> {
        self.0.clone()
    }

    /// What tells this key from others without giving it away.
    pub(crate) fn id(&self) -> [u8; 8] {
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
        let derivation = Hkdf::<Sha256>::from_prk(self.0.as_slice())
            .expect("a volume key is as long as the hash");
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

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey(..)")
    }
}

/// The keys that a volume needs: its own, with which it encrypts, and those of the ancestors that it was forked from.
#[derive(Debug, Clone, Default)]
pub struct Keys(HashMap<VolumeId, VolumeKey>);

impl Keys {
    /// No key: nothing is encrypted, and nothing that is can be read.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// These and one more.
    #[must_use]
    pub fn with(mut self, volume: VolumeId, key: VolumeKey) -> Self {
        self.0.insert(volume, key);
        self
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
    use super::{Keys, TAG_BYTES, VolumeKey, WrongKey};
    use crate::{VolumeId, segment::SegmentName};

    #[test]
    fn every_volume_segment_and_part_is_encrypted_for_itself() {
        let (one, other) = (VolumeId::now(), VolumeId::now());
        let key = VolumeKey::derive(&[7; 32], one);
        assert_ne!(key.id(), VolumeKey::derive(&[7; 32], other).id());
        assert_ne!(key.id(), VolumeKey::derive(&[8; 32], one).id());
        assert_eq!(key.id(), VolumeKey::from_bytes(*key.to_bytes()).id());
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
        let key = VolumeKey::from_bytes([0xab; 32]);
        let keys = Keys::none().with(VolumeId::now(), key);
        let printed = format!("{keys:?}");
        assert!(!printed.contains("171") && !printed.contains("ab, "), "{printed}");
    }
}
