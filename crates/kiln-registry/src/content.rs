//! What a version consists of: an OCI image manifest with one layer for each segment, and a config that names every chunk.
//!
//! Both are read as if a stranger had written them: their size is limited before they are read, and every count and
//! length is compared with the size of the disk before anything is made of it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kiln_core::{ByteSize, Digest};
use kiln_disk::{
    CHUNK, SEGMENT,
    seal::{self, Chunk, zero_chunk},
    segment::{self, LONGEST_FRAME, stored_length},
};
use serde::{Deserialize, Serialize};

pub(crate) const ARTIFACT_TYPE: &str = "application/vnd.kiln.machine-image.v1";
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG_TYPE: &str = "application/vnd.kiln.machine-image.config.v1+json";
pub(crate) const SEGMENT_TYPE: &str = "application/vnd.kiln.machine-image.segment.v1+zstd";

/// No manifest of a disk that kiln can seal is longer.
pub const LONGEST_MANIFEST: u64 = 128 << 20;
/// 64 bytes for each chunk of 256 GiB of data.
pub const LONGEST_CONFIG: u64 = 256 << 20;
/// As when an image is sealed.
const LARGEST_DISK: u64 = 2 << 40;
/// Bytes of a chunk in the config: length of the frame, then the digest.
const ENTRY: usize = 4 + 32;

/// A blob by name, kind and size, as OCI has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// The config: `chunks` has a text for each segment, empty when all of it is zeros, else for each chunk the length of
/// its frame (4 bytes, little endian; 0 for zeros) and its SHA-256, in base64.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    format: u32,
    disk: Digest,
    size: u64,
    chunk_size: u64,
    segment_size: u64,
    compressors: Vec<String>,
    chunks: Vec<String>,
}

/// A segment of a version: its blob and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSegment {
    pub blob: Descriptor,
    pub chunks: Vec<Chunk>,
}

/// The disk of a version, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Virtual size in bytes.
    pub size: u64,
    pub disk: Digest,
    /// What made the frames.
    pub compressors: Vec<String>,
    pub segments: Vec<StoredSegment>,
}

impl StoredSegment {
    pub(crate) fn new(digest: Digest, chunks: Vec<Chunk>) -> Self {
        let size = chunks.iter().map(stored_length).sum::<usize>() as u64;
        Self { blob: Descriptor { media_type: SEGMENT_TYPE.to_owned(), digest, size }, chunks }
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.frame == 0)
    }
}

impl Content {
    /// Every chunk of the disk, in order.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.segments.iter().flat_map(|segment| &segment.chunks)
    }

    pub(crate) fn digest(&self) -> Digest {
        seal::disk_digest(self.size, self.chunks().map(|chunk| chunk.digest))
    }

    /// The bytes of the config.
    pub(crate) fn config(&self) -> serde_json::Result<Vec<u8>> {
        let chunks = |segment: &StoredSegment| {
            if segment.is_zero() {
                return String::new();
            }
            let entry = |chunk: &Chunk| [&chunk.frame.to_le_bytes()[..], chunk.digest.as_bytes()].concat();
            STANDARD.encode(segment.chunks.iter().flat_map(entry).collect::<Vec<u8>>())
        };
        serde_json::to_vec(&Config {
            format: 1,
            disk: self.disk,
            size: self.size,
            chunk_size: CHUNK as u64,
            segment_size: SEGMENT as u64,
            compressors: self.compressors.clone(),
            chunks: self.segments.iter().map(chunks).collect(),
        })
    }

    /// The bytes of the manifest that names this content and `config`.
    pub(crate) fn manifest(&self, config: &[u8]) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Manifest {
            schema_version: 2,
            media_type: MANIFEST_TYPE.to_owned(),
            artifact_type: ARTIFACT_TYPE.to_owned(),
            config: descriptor(CONFIG_TYPE, config),
            layers: self.segments.iter().map(|segment| segment.blob.clone()).collect(),
        })
    }

    /// The config that `manifest` names. The error says what is wrong.
    pub(crate) fn config_of(manifest: &[u8]) -> Result<Descriptor, String> {
        let config = parse_manifest(manifest)?.config;
        if config.size > LONGEST_CONFIG {
            let sizes = (ByteSize(config.size).approximate(), ByteSize(LONGEST_CONFIG).approximate());
            return Err(format!("its config would be {} long; {} is the limit", sizes.0, sizes.1));
        }
        Ok(config)
    }

    /// The blobs that `manifest` names, the config first.
    pub(crate) fn blobs_of(manifest: &[u8]) -> Result<Vec<Descriptor>, String> {
        let Manifest { config, mut layers, .. } = parse_manifest(manifest)?;
        layers.insert(0, config);
        Ok(layers)
    }

    /// What `manifest` and its `config` say, when they agree with each other. The error says what is wrong.
    pub(crate) fn parse(manifest: &[u8], config: &[u8]) -> Result<Self, String> {
        let manifest = parse_manifest(manifest)?;
        let config: Config = serde_json::from_slice(config).map_err(|error| format!("its config: {error}"))?;
        if config.format != 1 || config.chunk_size != CHUNK as u64 || config.segment_size != SEGMENT as u64 {
            return Err("its config has chunks or segments of another size; a newer kiln may read it".to_owned());
        }
        if config.size == 0 || config.size > LARGEST_DISK || !config.size.is_multiple_of(512) {
            return Err(format!("{} bytes are not the size of a disk", config.size));
        }
        let count = segment::count(config.size);
        if (manifest.layers.len() as u64, config.chunks.len() as u64) != (count, count) {
            let found = (manifest.layers.len(), config.chunks.len());
            return Err(format!("a disk of this size has {count} segments; {} and {} are named", found.0, found.1));
        }
        let zero = zero_chunk();
        let mut segments = Vec::with_capacity(config.chunks.len());
        for (number, (blob, text)) in manifest.layers.into_iter().zip(&config.chunks).enumerate() {
            let chunks = parse_chunks(text, segment::chunks_of(config.size, number as u64), zero)
                .ok_or_else(|| format!("the chunks of its segment {number} are not readable"))?;
            let expected = StoredSegment::new(blob.digest, chunks);
            if expected.blob != blob {
                return Err(format!("its segment {number} is not as long as its frames"));
            }
            segments.push(expected);
        }
        let content = Self { size: config.size, disk: config.disk, compressors: config.compressors, segments };
        if content.digest() == content.disk {
            Ok(content)
        } else {
            Err("its chunks are those of another disk".to_owned())
        }
    }
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor { media_type: media_type.to_owned(), digest: Digest::of(bytes), size: bytes.len() as u64 }
}

fn parse_manifest(bytes: &[u8]) -> Result<Manifest, String> {
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if manifest.schema_version != 2 || manifest.artifact_type != ARTIFACT_TYPE {
        return Err(format!("it is `{}`, not `{ARTIFACT_TYPE}`", manifest.artifact_type));
    }
    Ok(manifest)
}

fn parse_chunks(text: &str, count: usize, zero: Digest) -> Option<Vec<Chunk>> {
    if text.is_empty() {
        return Some(vec![Chunk { digest: zero, frame: 0 }; count]);
    }
    // Not decoded at all when its length is wrong.
    if text.len() != (count * ENTRY).div_ceil(3) * 4 {
        return None;
    }
    let bytes = STANDARD.decode(text).ok()?;
    let chunks: Option<Vec<_>> = bytes.chunks_exact(ENTRY).map(|entry| parse_chunk(entry, zero)).collect();
    chunks.filter(|chunks| chunks.len() == count)
}

fn parse_chunk(entry: &[u8], zero: Digest) -> Option<Chunk> {
    let (length, digest) = entry.split_first_chunk::<4>()?;
    let chunk = Chunk { frame: u32::from_le_bytes(*length), digest: Digest::from_bytes(digest.try_into().ok()?) };
    let sound = chunk.frame <= LONGEST_FRAME && (chunk.frame == 0) == (chunk.digest == zero);
    sound.then_some(chunk)
}
