//! Names and ids. A name that exists is a valid one: it is checked where it is made, once.

use std::fmt;
use std::sync::Arc;

/// Why a cluster's or region's name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{given}' cannot be a name: use 1 to 32 characters of a-z, 0-9 and '-', beginning with a letter and not ending with '-'")]
pub struct NameError {
    given: String,
}

fn check_name(given: &str) -> Result<Arc<str>, NameError> {
    let ok = (1..=32).contains(&given.len())
        && given.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && given.as_bytes()[0].is_ascii_lowercase()
        && !given.ends_with('-');
    if ok { Ok(Arc::from(given)) } else { Err(NameError { given: given.chars().take(64).collect() }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// # Errors
            /// When `given` would not be a valid DNS label of at most 32 characters.
            pub fn new(given: &str) -> Result<$name, NameError> {
                check_name(given).map($name)
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(given: &str) -> Result<$name, NameError> {
                $name::new(given)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<$name, D::Error> {
                let given = String::deserialize(d)?;
                $name::new(&given).map_err(serde::de::Error::custom)
            }
        }

        impl bincode::Encode for $name {
            fn encode<E: bincode::enc::Encoder>(&self, e: &mut E) -> Result<(), bincode::error::EncodeError> {
                self.as_str().encode(e)
            }
        }

        impl<C> bincode::Decode<C> for $name {
            fn decode<D: bincode::de::Decoder<Context = C>>(d: &mut D) -> Result<$name, bincode::error::DecodeError> {
                let given = <String as bincode::Decode<C>>::decode(d)?;
                $name::new(&given).map_err(|e| bincode::error::DecodeError::OtherString(e.to_string()))
            }
        }

        impl<'de, C> bincode::BorrowDecode<'de, C> for $name {
            fn borrow_decode<D: bincode::de::BorrowDecoder<'de, Context = C>>(d: &mut D) -> Result<$name, bincode::error::DecodeError> {
                <$name as bincode::Decode<C>>::decode(d)
            }
        }
    };
}

name! {
    /// Name of a region, `us-east`. A valid DNS label, because certificates carry it.
    RegionName
}
name! {
    /// Name of a global cluster. A valid DNS label, because certificates carry it.
    ClusterName
}

/// One of the six copies of a protection group, 0 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
pub struct CopyId(pub u8);

/// Availability zone of a region: a, b, c; two copies in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Az {
    A,
    B,
    C,
}

impl CopyId {
    /// All six, in order a1 a2 b1 b2 c1 c2.
    #[must_use]
    pub fn all() -> [CopyId; 6] {
        [CopyId(0), CopyId(1), CopyId(2), CopyId(3), CopyId(4), CopyId(5)]
    }

    #[must_use]
    pub fn az(self) -> Az {
        match self.0 {
            0 | 1 => Az::A,
            2 | 3 => Az::B,
            4 | 5 => Az::C,
            n => unreachable!("BUG: copy {n} of six"),
        }
    }

    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Az {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Az::A => "a",
            Az::B => "b",
            Az::C => "c",
        })
    }
}

/// `a1`, `a2`, `b1` ...: the AZ and which of its two.
impl fmt::Display for CopyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.az(), self.0 % 2 + 1)
    }
}

impl std::str::FromStr for CopyId {
    type Err = String;
    fn from_str(given: &str) -> Result<CopyId, String> {
        CopyId::all()
            .into_iter()
            .find(|c| c.to_string() == given)
            .ok_or_else(|| format!("there is no copy '{given}'; the six are a1 a2 b1 b2 c1 c2"))
    }
}

/// A protection group: six copies of the segments that belong to it. Counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
pub struct GroupId(pub u32);

impl GroupId {
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// `g0`, `g1` ...
impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}", self.0)
    }
}

/// One copy of one protection group: a home of the log and of the group's pages, with a directory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
pub struct MemberId {
    pub group: GroupId,
    pub copy: CopyId,
}

impl MemberId {
    /// All members of a volume of so many groups: the six of group 0, the six of group 1 ...
    pub fn all(groups: u32) -> impl Iterator<Item = MemberId> + use<> {
        (0..groups).flat_map(|g| MemberId::of(GroupId(g)))
    }

    /// The six of one group.
    #[must_use]
    pub fn of(group: GroupId) -> [MemberId; 6] {
        CopyId::all().map(|copy| MemberId { group, copy })
    }

    /// Position in [`MemberId::all`].
    #[must_use]
    pub fn index(self) -> usize {
        self.group.index() * 6 + self.copy.index()
    }
}

/// `a1` in group 0, `a1.g1` in group 1: also the name of its directory.
impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group == GroupId(0) { write!(f, "{}", self.copy) } else { write!(f, "{}.{}", self.copy, self.group) }
    }
}

/// Which history this is. Drawn at random once, when the global cluster is founded, and written into every copy. Two
/// histories with different lineages are never merged (protocol.md S22).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct LineageId(pub u128);

impl fmt::Display for LineageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for LineageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One connection to another region, as the driver numbers them. Never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);
