//! All files of the folder together: what they say of each object, and what is different after some were read again.
//!
//! An object that stands several times is as the last one says: files in the order of their names, documents in the
//! order of the file, as `kubectl apply -f` would leave it. Each such case is noted once.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs, io,
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use super::manifest::{self, Found, Manifest};
use crate::{
    model::{Change, ObjectName, Source},
    watch::{
        What,
        convert::{Converter, Kind, Value},
        known::Known,
    },
};

/// The kinds in the order in which they are told: a Service whose slices are still unknown would refuse for a moment.
const KINDS: [Kind; 5] = [Kind::Slice, Kind::Service, Kind::ServiceCidr, Kind::Node, Kind::Pod];

type Key = (Kind, ObjectName);

/// What a file says of one object.
#[derive(Debug)]
struct Said {
    value: Option<Value>,
    trigger: Option<SystemTime>,
}

/// How reading one file went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// To its end, or it is gone.
    Done,
    /// It is empty and was not: most likely somebody has emptied it and is about to write. What it said stays.
    Emptied,
}

/// The files as last read, and what was passed on.
#[derive(Debug)]
pub(super) struct Contents {
    converter: Converter,
    files: BTreeMap<OsString, BTreeMap<Key, Said>>,
    /// Which files an object is in.
    places: BTreeMap<Key, BTreeSet<OsString>>,
    /// Objects of files that were read since [`Self::settle`].
    touched: BTreeSet<Key>,
    known: [Known; 5],
    /// [`Self::settle`] was called.
    complete: bool,
}

impl Contents {
    /// Nothing yet.
    pub(super) fn new(converter: Converter) -> Self {
        Self {
            converter,
            files: BTreeMap::new(),
            places: BTreeMap::new(),
            touched: BTreeSet::new(),
            known: KINDS.map(Known::new),
            complete: false,
        }
    }

    /// Those that are told.
    fn kinds(&self) -> &'static [Kind] {
        if self.converter.pods { &KINDS } else { &KINDS[..KINDS.len() - 1] }
    }

    /// The names of the files that say something.
    pub(super) fn names(&self) -> impl Iterator<Item = &OsString> {
        self.files.keys()
    }

    /// Reads the file of this name again, or finds that it is gone. What can't be read leaves what it said before.
    pub(super) fn read(&mut self, folder: &Path, name: &OsStr, out: &mut Vec<(Source, What)>) -> Reading {
        let text = match fs::read(folder.join(name)) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => {
                self.forget(name);
                return Reading::Done;
            }
            Err(error) => {
                let why = format!("it can't be read, what it said before stays: {error}");
                out.push(malformed(Source::Services, file(name), why));
                return Reading::Done;
            }
        };
        let is_json = Path::new(name).extension().is_some_and(|extension| extension == "json");
        match manifest::parse(&text, is_json) {
            Ok(manifest) if manifest.is_empty && self.files.contains_key(name) => Reading::Emptied,
            Ok(manifest) => {
                self.take(name, manifest, out);
                Reading::Done
            }
            Err(why) => {
                let why = format!("it can't be read, what it said before stays: {why}");
                out.push(malformed(Source::Services, file(name), why));
                Reading::Done
            }
        }
    }

    /// The file of this name holds this now.
    pub(super) fn take(&mut self, name: &OsStr, manifest: Manifest, out: &mut Vec<(Source, What)>) {
        for why in manifest.bad {
            out.push(malformed(Source::Services, file(name), why));
        }
        let mut all = BTreeMap::new();
        let kinds = self.kinds();
        for found in manifest.found.into_iter().filter(|found| kinds.contains(&found.kind)) {
            let Some((key, said)) = self.said(found, out) else { continue };
            if all.insert(key.clone(), said).is_some() {
                out.push(double(key, &format!("it is twice in {}", name.to_string_lossy())));
            }
        }
        self.replace(name, all, out);
    }

    /// The file of this name is gone, or stays empty.
    pub(super) fn forget(&mut self, name: &OsStr) {
        self.replace(name, BTreeMap::new(), &mut Vec::new());
    }

    fn replace(&mut self, name: &OsStr, all: BTreeMap<Key, Said>, out: &mut Vec<(Source, What)>) {
        let old = self.files.remove(name).unwrap_or_default();
        for key in old.into_keys().filter(|key| !all.contains_key(key)) {
            if let Some(places) = self.places.get_mut(&key) {
                places.remove(name);
                if places.is_empty() {
                    self.places.remove(&key);
                }
            }
            self.touched.insert(key);
        }
        for key in all.keys() {
            let places = self.places.entry(key.clone()).or_default();
            if places.insert(name.to_owned()) && places.len() > 1 {
                let places: Vec<_> = places.iter().map(|place| place.to_string_lossy()).collect();
                out.push(double(key.clone(), &format!("it is in {}", places.join(" and in "))));
            }
            self.touched.insert(key.clone());
        }
        if !all.is_empty() {
            self.files.insert(name.to_owned(), all);
        }
    }

    fn said(&self, found: Found, out: &mut Vec<(Source, What)>) -> Option<(Key, Said)> {
        let source = found.kind.source();
        let json = found.json.to_string();
        match self.converter.convert(found.kind, json.as_bytes()) {
            Ok(converted) => {
                for why in converted.notes {
                    out.push((source, What::Note { name: converted.name.clone(), why }));
                }
                let said = Said { value: converted.value, trigger: converted.trigger };
                Some(((found.kind, converted.name), said))
            }
            Err(bad) => {
                out.push(malformed(source, bad.name.clone(), bad.why));
                // What was served of it stays.
                let value = self.known[place(found.kind)].get(&bad.name)?.clone();
                Some(((found.kind, bad.name), Said { value: Some(value), trigger: None }))
            }
        }
    }

    /// Compares what the files say with what was passed on: the first time as complete lists, then object by object.
    pub(super) fn settle(&mut self, out: &mut Vec<(Source, What)>) {
        let touched = std::mem::take(&mut self.touched);
        let mut changes = Vec::new();
        if std::mem::replace(&mut self.complete, true) {
            for key in &touched {
                let said = self.last(key);
                let (value, trigger) = said.map_or((None, None), |said| (said.value.clone(), said.trigger));
                let change = self.known[place(key.0)].put(&key.1, value);
                changes.extend(change.map(|change| (key.0, change, trigger)));
            }
        } else {
            for &kind in self.kinds() {
                let ours = touched.iter().filter(|key| key.0 == kind);
                let values = ours.filter_map(|key| Some((key.1.clone(), self.last(key)?.value.clone()?)));
                let change = self.known[place(kind)].replace(values.collect());
                changes.extend(change.map(|change| (kind, change, None)));
            }
        }
        // A slice comes before the Service that needs it, and goes after it.
        changes.sort_by_key(|(kind, change, _)| match change {
            Change::Slice(_, None) => KINDS.len(),
            _ => place(*kind),
        });
        for &kind in self.kinds() {
            if !changes.iter().any(|(of, ..)| *of == kind) {
                out.push((kind.source(), What::Alive));
            }
        }
        let changes = changes.into_iter();
        out.extend(changes.map(|(kind, change, trigger)| (kind.source(), What::Change { change, trigger })));
    }

    /// What the last file in which it is says of an object.
    fn last(&self, key: &Key) -> Option<&Said> {
        self.files.get(self.places.get(key)?.last()?)?.get(key)
    }
}

fn place(kind: Kind) -> usize {
    match kind {
        Kind::Slice => 0,
        Kind::Service => 1,
        Kind::ServiceCidr => 2,
        Kind::Node => 3,
        Kind::Pod => 4,
    }
}

/// A file in the place of an object's name.
fn file(name: &OsStr) -> ObjectName {
    ObjectName { namespace: "".into(), name: Arc::from(name.to_string_lossy()) }
}

fn malformed(source: Source, name: ObjectName, why: String) -> (Source, What) {
    (source, What::Change { change: Change::Malformed { source, name, why }, trigger: None })
}

fn double((kind, name): Key, places: &str) -> (Source, What) {
    (kind.source(), What::Note { name, why: format!("{places}: the last one counts") })
}
