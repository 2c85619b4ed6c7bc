//! What was made from what: hashes of every input and output, tools, flags, and resources of every kernel.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::bindings::STORE_C;
use crate::compile::{Module, Resources};
use crate::output::{Error, Generated};
use crate::tools::Tools;

pub(crate) const PATH: &str = "kernels/generated/manifest.json";

#[derive(Serialize)]
pub(crate) struct Manifest {
    tools: BTreeMap<&'static str, String>,
    modules: BTreeMap<&'static str, ModuleEntry>,
    /// BLAKE3 by path from the root of the repository.
    inputs: BTreeMap<String, String>,
    outputs: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct ModuleEntry {
    nvcc: Vec<String>,
    ptx_version: &'static str,
    kernels: BTreeMap<String, BTreeMap<&'static str, Resources>>,
}

impl Manifest {
    pub(crate) fn new(
        tools: &Tools,
        root: &Path,
        modules: &[Module],
        outputs: &Generated,
    ) -> Result<Self, Error> {
        let modules = modules
            .iter()
            .map(|module| {
                let entry = ModuleEntry {
                    nvcc: module.source.flags(),
                    ptx_version: module.ptx_version,
                    kernels: module.entries.clone(),
                };
                (module.source.name, entry)
            })
            .collect();
        let outputs =
            outputs.files.iter().map(|(path, content)| (path.clone(), hash(content.as_bytes()))).collect();
        Ok(Self { tools: tools.versions().into(), modules, inputs: inputs(root)?, outputs })
    }

    pub(crate) fn to_json(&self) -> Result<String, Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Hashes of everything that nvcc and bindgen read: the sources at the top of `kernels/`, and a header elsewhere.
fn inputs(root: &Path) -> Result<BTreeMap<String, String>, Error> {
    let folder = root.join("kernels");
    let mut inputs = BTreeMap::new();
    for entry in fs::read_dir(&folder).map_err(Error::at(&folder))? {
        let path = entry.map_err(Error::at(&folder))?.path();
        let is_source = path.extension().is_some_and(|end| end == "cu" || end == "cuh" || end == "h");
        if let (true, Some(name)) = (is_source, path.file_name()) {
            let content = fs::read(&path).map_err(Error::at(&path))?;
            inputs.insert(format!("kernels/{}", name.to_string_lossy()), hash(&content));
        }
    }
    let path = root.join(STORE_C);
    inputs.insert(STORE_C.to_owned(), hash(&fs::read(&path).map_err(Error::at(&path))?));
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::FOLDER;
    use std::collections::BTreeSet;

    /// Needs none of the tools: a source or a generated file that was edited alone is seen by every test run.
    #[test]
    fn the_files_in_the_tree_are_those_of_the_manifest() {
        let root = crate::root();
        let manifest: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(root.join(PATH)).unwrap()).unwrap();
        let section = |name: &str| -> BTreeMap<String, String> {
            serde_json::from_value(manifest[name].clone()).unwrap()
        };
        let advice = "kernels changed: run `make kernels` and commit the result";
        assert_eq!(inputs(&root).unwrap(), section("inputs"), "{advice}");

        let outputs = section("outputs");
        for (path, expected) in &outputs {
            assert_eq!(&hash(&fs::read(root.join(path)).unwrap()), expected, "{path}: {advice}");
        }
        let found: BTreeSet<String> = fs::read_dir(root.join(FOLDER))
            .unwrap()
            .map(|entry| format!("{FOLDER}/{}", entry.unwrap().file_name().to_string_lossy()))
            .collect();
        let expected =
            outputs.keys().filter(|path| path.starts_with(FOLDER)).cloned().chain([PATH.to_owned()]);
        assert_eq!(found, expected.collect(), "{advice}");
    }
}
