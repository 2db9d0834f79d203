//! Named networks: which regions there are and how far apart.
//!
//! A profile is a TOML file: `name`, `description`, `source` (where the figures come from), `regions` in the order a demo
//! takes them, `[[link]]` tables and one `[default]`. A link with `rtt` holds for both ways, half each; one with `delay`
//! for `from` -> `to` only. Every ordered pair must be covered once; unknown keys are errors. The files of `netem/` are
//! built into the binary and known by name; any other is read from its path. Driven by the demo.

use super::relay::Pair;
use super::settings::half_of_rtt_us;
use super::{NetemError, Settings};
use crate::base::RegionName;
use std::collections::BTreeMap;

const BUILT_IN: [(&str, &str); 6] = [
    ("world", include_str!("../../../netem/world.toml")),
    ("europe", include_str!("../../../netem/europe.toml")),
    ("us", include_str!("../../../netem/us.toml")),
    ("lan", include_str!("../../../netem/lan.toml")),
    ("none", include_str!("../../../netem/none.toml")),
    ("lossy", include_str!("../../../netem/lossy.toml")),
];

/// A network: regions in order, and the settings of every direction between them.
#[derive(Clone, Debug)]
pub struct Profile {
    pub name: String,
    pub description: String,
    /// Where the figures come from.
    pub source: String,
    regions: Vec<RegionName>,
    settings: BTreeMap<Pair, Settings>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    description: String,
    source: String,
    regions: Vec<RegionName>,
    #[serde(default)]
    default: Option<Link>,
    #[serde(default)]
    link: Vec<Link>,
}

/// One `[[link]]`, or `[default]`, which names no regions.
#[derive(Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Link {
    from: Option<RegionName>,
    to: Option<RegionName>,
    rtt: Option<String>,
    delay: Option<String>,
    jitter: Option<String>,
    loss: Option<String>,
    burst: Option<u32>,
    reorder: Option<String>,
    duplicate: Option<String>,
    rate: Option<String>,
    queue: Option<String>,
}

impl Link {
    fn has_length(&self) -> bool {
        self.rtt.is_some() || self.delay.is_some()
    }

    fn applied_to(&self, base: &Settings) -> Result<Settings, String> {
        let burst = self.burst.map(|n| n.to_string());
        let changes: Vec<String> = [
            ("delay", &self.delay),
            ("jitter", &self.jitter),
            ("loss", &self.loss),
            ("burst", &burst),
            ("reorder", &self.reorder),
            ("duplicate", &self.duplicate),
            ("rate", &self.rate),
            ("queue", &self.queue),
        ]
        .into_iter()
        .filter_map(|(key, value)| value.as_ref().map(|v| format!("{key}={v}")))
        .collect();
        let mut settings = base.with(&changes).map_err(|e| e.to_string())?;
        match (&self.rtt, &self.delay) {
            (Some(_), Some(_)) => return Err("give rtt (both ways) or delay (one way), not both".to_owned()),
            (Some(rtt), None) => settings.delay_us = half_of_rtt_us(rtt).map_err(|reason| format!("rtt = \"{rtt}\": {reason}"))?,
            (None, _) => {}
        }
        Ok(settings)
    }
}

impl Profile {
    /// The built-in profile of that name, or the file at that path.
    ///
    /// # Errors
    /// When there is neither, or the file has a mistake.
    pub fn load(name_or_path: &str) -> Result<Profile, NetemError> {
        let (text, shown);
        if let Some((_, built_in)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
            (text, shown) = ((*built_in).to_owned(), name_or_path);
        } else if name_or_path.ends_with(".toml") || name_or_path.contains('/') {
            text = std::fs::read_to_string(name_or_path)
                .map_err(|e| NetemError::Profile { profile: name_or_path.to_owned(), reason: format!("cannot be read: {e}") })?;
            shown = name_or_path;
        } else {
            let known = Profile::names().collect::<Vec<_>>().join(", ");
            return Err(NetemError::UnknownProfile { given: name_or_path.to_owned(), known });
        }
        Profile::parse(&text).map_err(|reason| NetemError::Profile { profile: shown.to_owned(), reason })
    }

    /// The built-in ones.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// The first `n` regions.
    ///
    /// # Errors
    /// When the profile has fewer.
    pub fn regions(&self, n: usize) -> Result<Vec<RegionName>, NetemError> {
        let first = self.regions.get(..n);
        first.map(<[_]>::to_vec).ok_or_else(|| NetemError::TooManyRegions { profile: self.name.clone(), asked: n, has: self.regions.len() })
    }

    /// How many regions it has.
    #[must_use]
    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// The direction `from` -> `to`; nothing impaired when the profile does not know them (a region of the user's own).
    #[must_use]
    pub fn settings(&self, from: &RegionName, to: &RegionName) -> Settings {
        self.settings.get(&(from.clone(), to.clone())).cloned().unwrap_or_default()
    }

    fn parse(text: &str) -> Result<Profile, String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        for (i, region) in file.regions.iter().enumerate() {
            if file.regions[..i].contains(region) {
                return Err(format!("region '{region}' is listed twice"));
            }
        }
        let known = |r: &RegionName| {
            let names = || file.regions.iter().map(RegionName::as_str).collect::<Vec<_>>().join(", ");
            if file.regions.contains(r) { Ok(()) } else { Err(format!("a link names '{r}', but the regions are {}", names())) }
        };
        let default = file.default.unwrap_or_default();
        if default.from.is_some() || default.to.is_some() {
            return Err("[default] names no regions; use a [[link]] for that".to_owned());
        }
        let base = default.applied_to(&Settings::default()).map_err(|reason| format!("[default]: {reason}"))?;
        let mut settings: BTreeMap<Pair, Settings> = BTreeMap::new();
        for link in &file.link {
            let (Some(from), Some(to)) = (&link.from, &link.to) else {
                return Err("a [[link]] needs from and to".to_owned());
            };
            known(from)?;
            known(to)?;
            if from == to {
                return Err(format!("a link goes from '{from}' to itself"));
            }
            if !link.has_length() && !default.has_length() {
                return Err(format!("the link {from} to {to} needs an rtt (both ways) or a delay (one way)"));
            }
            let this = link.applied_to(&base).map_err(|reason| format!("the link {from} to {to}: {reason}"))?;
            let there = (from.clone(), to.clone());
            let back = link.delay.is_none().then(|| (to.clone(), from.clone()));
            for pair in [Some(there), back].into_iter().flatten() {
                if settings.insert(pair, this.clone()).is_some() {
                    return Err(format!("the link {from} to {to} is given twice"));
                }
            }
        }
        for from in &file.regions {
            for to in file.regions.iter().filter(|to| *to != from) {
                let pair = (from.clone(), to.clone());
                if default.has_length() {
                    settings.entry(pair).or_insert_with(|| base.clone());
                } else if !settings.contains_key(&pair) {
                    return Err(format!("there is no link from '{from}' to '{to}'; add a [[link]], or a [default] with an rtt"));
                }
            }
        }
        let File { name, description, source, regions, .. } = file;
        Ok(Profile { name, description, source, regions, settings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(s: &str) -> RegionName {
        RegionName::new(s).unwrap()
    }

    #[test]
    fn the_built_in_profiles_cover_every_pair_and_say_where_they_come_from() {
        for profile_name in Profile::names() {
            let p = Profile::load(profile_name).unwrap();
            assert_eq!(p.name, profile_name);
            assert!(!p.source.trim().is_empty() && !p.description.is_empty());
            let regions = p.regions(p.region_count()).unwrap();
            assert_eq!(p.settings.len(), regions.len() * (regions.len() - 1), "{profile_name}");
            assert!(regions.len() >= 5);
            for ((from, to), settings) in &p.settings {
                assert_eq!(settings, &p.settings(to, from), "{profile_name}: {from} to {to} is symmetric");
                assert_eq!(settings.delay_us > 0, profile_name != "none", "{profile_name}: {from} to {to}");
            }
        }
        let world = Profile::load("world").unwrap();
        let first = world.regions(3).unwrap();
        assert_eq!(first, [name("us-east"), name("eu-west"), name("ap-northeast")]);
        assert_eq!(world.settings(&first[0], &first[1]).to_string(), "delay=35ms");
        let lossy = Profile::load("lossy").unwrap().settings(&first[0], &first[1]);
        assert_eq!(lossy.to_string(), "delay=35ms jitter=4ms loss=1% burst=3 reorder=0.5% rate=100mbit");
    }

    #[test]
    fn a_demo_cannot_have_more_regions_than_the_profile() {
        let error = Profile::load("us").unwrap().regions(6).unwrap_err().to_string();
        assert!(error.contains("'us' has 5 regions, 6 were asked for"), "{error}");
        let error = Profile::load("mars").unwrap_err().to_string();
        assert!(error.contains("no network profile 'mars'") && error.contains("world, europe, us, lan, none, lossy"), "{error}");
    }

    #[test]
    fn a_file_of_ones_own_is_read_from_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        let text = "name='mine'\ndescription='d'\nsource='s'\nregions=['a','b']\n\
                    [[link]]\nfrom='a'\nto='b'\ndelay='7ms'\nloss='2%'\n[[link]]\nfrom='b'\nto='a'\ndelay='9ms'\nburst=4\n";
        std::fs::write(&path, text).unwrap();
        let p = Profile::load(path.to_str().unwrap()).unwrap();
        assert_eq!(p.settings(&name("a"), &name("b")).to_string(), "delay=7ms loss=2%");
        assert_eq!(p.settings(&name("b"), &name("a")).to_string(), "delay=9ms burst=4");
        assert_eq!(p.settings(&name("b"), &name("c")), Settings::default());
        let error = Profile::load(dir.path().join("other.toml").to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("other.toml': cannot be read"), "{error}");
    }

    #[test]
    fn mistakes_in_a_profile_are_named() {
        let head = "name='x'\ndescription='d'\nsource='s'\nregions=['a','b','c']\n";
        let all = "[default]\nrtt='2ms'\n";
        for (text, expected) in [
            (String::new(), "missing field `name`"),
            (format!("{head}colour=1\n{all}"), "unknown field `colour`"),
            (format!("{head}[default]\nrtt='2ms'\nblackhole='on'\n"), "unknown field `blackhole`"),
            (format!("{head}{all}[[link]]\nfrom='a'\nto='b'\nrtts='1ms'\n"), "unknown field `rtts`"),
            (format!("{head}{all}[[link]]\nfrom='a'\nto='b'\nrtt='1'\n"), "the link a to b: rtt = \"1\": a time has a unit"),
            (format!("{head}{all}[[link]]\nfrom='a'\nto='b'\nloss='2'\n"), "the link a to b: 'loss=2' is not a link setting"),
            (format!("{head}{all}[[link]]\nfrom='a'\nto='d'\nrtt='1ms'\n"), "names 'd', but the regions are a, b, c"),
            (format!("{head}{all}[[link]]\nfrom='a'\nto='a'\nrtt='1ms'\n"), "from 'a' to itself"),
            (format!("{head}{all}[[link]]\nfrom='a'\nto='b'\nrtt='1ms'\ndelay='1ms'\n"), "not both"),
            (format!("{head}{all}[[link]]\nfrom='a'\nto='b'\nrtt='1ms'\n[[link]]\nfrom='b'\nto='a'\ndelay='1ms'\n"), "given twice"),
            (format!("{head}[[link]]\nfrom='a'\nto='b'\nrtt='1ms'\n"), "no link from 'a' to 'c'"),
            (format!("{head}[[link]]\nfrom='a'\nto='b'\nloss='1%'\n"), "needs an rtt"),
            (format!("{head}[default]\nloss='1%'\n[[link]]\nfrom='a'\nto='b'\nrtt='1ms'\n"), "no link from 'a' to 'c'"),
            (format!("{head}[default]\nfrom='a'\nrtt='1ms'\n"), "[default] names no regions"),
            (format!("{head}[[link]]\nfrom='a'\nrtt='1ms'\n"), "needs from and to"),
            ("name='x'\ndescription='d'\nsource='s'\nregions=['a','a']\n".to_owned(), "listed twice"),
            ("name='x'\ndescription='d'\nsource='s'\nregions=['A']\n".to_owned(), "cannot be a name"),
        ] {
            let error = Profile::parse(&text).unwrap_err();
            assert!(error.contains(expected), "expected '{expected}' in: {error}");
        }
    }
}
