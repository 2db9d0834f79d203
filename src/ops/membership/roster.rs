//! Who the members are and how this one reaches them: the file's word and the members' own.
//!
//! Decides which of two addresses counts, and what is said of a file that is older than the membership. A file says how a region is
//! *reached*, for regions that it has always named (a relay, a private network); the membership says who *is* one, and where those are that
//! came later. Never decides who is a member. Shared by everything in a process that speaks with others.

use crate::base::RegionName;
use crate::control::{MemberAt, MembersView};
use crate::io::control_link::{ControlLinks, Peer};
use crate::io::quic::{Admitted, Quic};
use crate::io::tls::Subject;
use crate::ops::config::Witness;
use parking_lot::RwLock;
use std::path::PathBuf;

/// See the module. The files' word until somebody changes the members.
pub struct Roster {
    own: RegionName,
    file: PathBuf,
    /// In the order of the file.
    files: Vec<(RegionName, String)>,
    /// That of the file.
    witness: Option<Witness>,
    /// This process is a witness.
    own_is_witness: bool,
    view: RwLock<MembersView>,
}

impl Roster {
    #[must_use]
    pub fn new(own: RegionName, file: PathBuf, files: Vec<(RegionName, String)>, witness: Option<Witness>) -> Roster {
        Roster { own, file, files, witness, own_is_witness: false, view: RwLock::default() }
    }

    /// Of a process that is the witness `own`.
    #[must_use]
    pub fn of_witness(own: RegionName, file: PathBuf, files: Vec<(RegionName, String)>) -> Roster {
        Roster { own_is_witness: true, ..Roster::new(own, file, files, None) }
    }

    /// All regions, in the order in which they are shown: those of the file first.
    #[must_use]
    pub fn regions(&self) -> Vec<RegionName> {
        let view = self.view.read();
        if view.version == 0 {
            return self.files.iter().map(|(r, _)| r.clone()).collect();
        }
        let is = |r: &RegionName| view.regions.iter().any(|m| m.name == *r);
        let mut regions: Vec<RegionName> = self.files.iter().map(|(r, _)| r.clone()).filter(is).collect();
        regions.extend(view.regions.iter().map(|m| m.name.clone()).filter(|r| !self.files.iter().any(|(f, _)| f == r)));
        if !self.own_is_witness && view.removed.iter().any(|(r, _)| *r == self.own) {
            regions.insert(0, self.own.clone());
        }
        regions
    }

    /// The witness, if there is one: where this process reaches it, and its failure domain as far as anybody said. As of regions, a file says
    /// how one is reached that it always named.
    #[must_use]
    pub fn witness(&self) -> Option<Witness> {
        let view = self.view.read();
        if view.version == 0 {
            return self.witness.clone();
        }
        let member = view.witness.as_ref()?;
        match self.witness.as_ref().filter(|w| w.name == member.name && member.since == 0) {
            Some(listed) => Some(listed.clone()),
            None => Some(Witness { name: member.name.clone(), quic: member.addr.clone(), zone: member.zone.clone() }),
        }
    }

    /// How this process reaches it.
    ///
    /// # Errors
    /// A sentence.
    pub fn addr(&self, region: &RegionName) -> Result<String, String> {
        let view = self.view.read();
        let listed = self.files.iter().find(|(r, _)| r == region).map(|(_, addr)| addr.clone());
        if view.version == 0 {
            return listed.ok_or_else(|| format!("{region} is not a member in this region's configuration"));
        }
        let member = view.regions.iter().find(|m| m.name == *region);
        // Whoever came by a command is where that said, whatever an older file has.
        let told = |m: &MemberAt| if m.since > 0 || listed.is_none() { m.addr.clone() } else { String::new() };
        match (member.map(told), listed) {
            (None, _) => Err(format!("{region} is no member of the global cluster")),
            (Some(told), _) if !told.is_empty() => Ok(told),
            (Some(_), Some(listed)) => Ok(listed),
            (Some(_), None) => Err(format!("nobody knows the address of {region}; write it as a [[member]] into {}", self.file.display())),
        }
    }

    /// Where the file and the membership differ; sentences.
    #[must_use]
    pub fn stale(&self) -> Vec<String> {
        let view = self.view.read();
        if view.version == 0 {
            return Vec::new();
        }
        let file = self.file.display();
        let mut stale = Vec::new();
        for (region, listed) in self.files.iter().filter(|(r, _)| *r != self.own) {
            match view.regions.iter().find(|m| m.name == *region) {
                None => stale.push(format!(
                    "{file} is older than the membership (version {}): it names {region}, which is no member and is not spoken with; take its [[member]] out",
                    view.version
                )),
                Some(m) if m.since > 0 && m.addr != *listed => {
                    stale.push(format!("{file} is older than the membership (version {}): {region} is at {} now", view.version, m.addr));
                }
                Some(_) => {}
            }
        }
        for new in view.regions.iter().filter(|m| m.name != self.own && !self.files.iter().any(|(r, _)| *r == m.name)) {
            stale.push(format!(
                "{file} is older than the membership (version {}): add {} as a [[member]], quic = \"{}\"; until then it is taken from the membership",
                view.version, new.name, new.addr
            ));
        }
        if !self.own_is_witness {
            stale.extend(self.stale_witness(&view));
        }
        stale
    }

    fn stale_witness(&self, view: &MembersView) -> Option<String> {
        let older = format!("{} is older than the membership (version {})", self.file.display(), view.version);
        match (&view.witness, &self.witness) {
            (Some(new), Some(listed)) if new.name == listed.name && (new.since == 0 || new.addr == listed.quic) => None,
            (Some(new), listed) => {
                let instead = listed.as_ref().map_or_else(String::new, |l| format!(" instead of {}", l.name));
                Some(format!(
                    "{older}: put the witness {} into [witness], quic = \"{}\"{instead}; until then it is taken from the membership",
                    new.name, new.addr
                ))
            }
            (None, Some(listed)) => Some(format!(
                "{older}: it names the witness {}, which is no member and is not spoken with; take its [witness] out",
                listed.name
            )),
            (None, None) => None,
        }
    }

    /// The others, as control links reach them; those that nobody can reach are left out.
    #[must_use]
    pub fn control_peers(&self) -> Vec<Peer> {
        let region = |name: RegionName| Some(Peer { addr: self.addr(&name).ok()?, name, subject: Subject::Region });
        let regions = self.regions().into_iter().filter(|r| *r != self.own).filter_map(region);
        // Witnesses have nothing to tell one another.
        let witness = self.witness().filter(|w| !self.own_is_witness && !w.quic.is_empty());
        regions.chain(witness.map(|w| Peer { name: w.name, subject: Subject::Witness, addr: w.quic })).collect()
    }

    #[must_use]
    pub fn version(&self) -> u64 {
        self.view.read().version
    }

    /// The members changed: whoever is one is let in and dialled, whoever is none is not. Must be called inside a tokio runtime.
    pub fn changed(&self, view: &MembersView, quic: &Quic, links: &ControlLinks) {
        let before = self.stale();
        *self.view.write() = view.clone();
        for sentence in self.stale().iter().filter(|s| !before.contains(s)) {
            tracing::warn!("{sentence}");
        }
        let names = |removed: &[(RegionName, u64)]| removed.iter().map(|(r, _)| r.clone()).collect::<Vec<_>>();
        let (removed, witnesses_removed) = (names(&view.removed), names(&view.witnesses_removed));
        let witness = view.witness.as_ref().map(|w| w.name.clone());
        quic.set_members(&Admitted {
            regions: self.regions(),
            removed: removed.clone(),
            witness,
            witnesses_removed: witnesses_removed.clone(),
        });
        if self.own_is_witness {
            // One that is out is never taken in again: it dials nobody any more.
            let out = witnesses_removed.contains(&self.own);
            links.set_peers(if out { Vec::new() } else { self.control_peers() });
        } else if !removed.contains(&self.own) {
            // A region that is out itself goes on listening and dialling: whoever takes it in again tells it.
            links.set_peers(self.control_peers());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::WitnessAt;

    fn name(name: &str) -> RegionName {
        RegionName::new(name).unwrap()
    }

    #[test]
    fn the_membership_says_who_and_the_file_how_those_are_reached_that_it_always_named() {
        let files = [("a", "relay:1"), ("b", "relay:2"), ("c", "relay:3")].map(|(n, addr)| (name(n), addr.to_owned()));
        let roster = Roster::new(name("a"), "a.toml".into(), files.to_vec(), None);
        assert_eq!(roster.addr(&name("b")).unwrap(), "relay:2");
        assert!(roster.stale().is_empty());
        let at = |n: &str, addr: &str, since| MemberAt { name: name(n), addr: addr.into(), since };
        *roster.view.write() = MembersView {
            version: 4,
            regions: vec![at("a", "x:1", 0), at("b", "x:2", 0), at("d", "x:4", 3)],
            removed: vec![(name("c"), 2)],
            ..MembersView::default()
        };
        assert_eq!(roster.regions(), ["a", "b", "d"].map(name));
        assert_eq!(roster.addr(&name("b")).unwrap(), "relay:2");
        assert_eq!(roster.addr(&name("d")).unwrap(), "x:4");
        assert!(roster.addr(&name("c")).unwrap_err().contains("no member"));
        let stale = roster.stale();
        assert!(stale.len() == 2 && stale[0].contains("names c") && stale[1].contains("add d as a [[member]]"), "{stale:?}");
        // It came back, elsewhere.
        roster.view.write().regions.push(at("c", "x:9", 5));
        assert_eq!(roster.addr(&name("c")).unwrap(), "x:9");
        assert!(roster.stale()[0].contains("c is at x:9 now"), "{:?}", roster.stale());
        assert_eq!(roster.control_peers().len(), 3);
    }

    #[test]
    fn the_witness_is_the_memberships_and_an_older_file_is_told() {
        let listed = Witness { name: name("w"), quic: "relay:9".into(), zone: Some("z".into()) };
        let files = vec![(name("a"), "relay:1".to_owned()), (name("b"), "relay:2".to_owned())];
        let roster = Roster::new(name("a"), "a.toml".into(), files.clone(), Some(listed.clone()));
        let at = |n: &str, addr: &str, since| WitnessAt { name: name(n), addr: addr.into(), zone: Some("y".into()), since };
        let told = |roster: &Roster, witness: Option<WitnessAt>| {
            let regions = ["a", "b"].map(|n| MemberAt { name: name(n), addr: format!("x:{n}"), since: 0 }).to_vec();
            *roster.view.write() = MembersView { version: 4, regions, witness, ..MembersView::default() };
        };
        let peers = |roster: &Roster| roster.control_peers().into_iter().map(|p| (p.name, p.addr)).collect::<Vec<_>>();
        assert_eq!((roster.witness(), peers(&roster).len()), (Some(listed.clone()), 2));
        // The same one: the file says how it is reached from here.
        told(&roster, Some(at("w", "x:9", 0)));
        assert_eq!((roster.witness(), roster.stale()), (Some(listed), Vec::new()));
        // It was replaced by command.
        told(&roster, Some(at("w2", "x:7", 3)));
        assert_eq!(roster.witness().map(|w| (w.name, w.quic, w.zone)), Some((name("w2"), "x:7".into(), Some("y".into()))));
        assert!(peers(&roster).contains(&(name("w2"), "x:7".into())), "{:?}", peers(&roster));
        let stale = roster.stale();
        assert!(stale.len() == 1 && stale[0].contains("put the witness w2 into [witness], quic = \"x:7\" instead of w"), "{stale:?}");
        // And then taken out.
        told(&roster, None);
        assert_eq!((roster.witness(), peers(&roster).len()), (None, 1));
        assert!(roster.stale()[0].contains("names the witness w, which is no member"), "{:?}", roster.stale());
        // A witness speaks with regions only, and its file says nothing of itself.
        let own = Roster::of_witness(name("w2"), "w2.toml".into(), files);
        told(&own, Some(at("w2", "x:7", 3)));
        assert_eq!((own.stale(), peers(&own).len()), (Vec::new(), 2));
    }
}
