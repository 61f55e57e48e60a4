//! The list of images: of each a line that holds as long as its head is in the state that was indexed.

use kiln_core::ImageName;
use kiln_registry::{ImageSummary, RegistryError};
use serde::{Deserialize, Serialize};

use crate::{Index, database::About};

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    /// The state of the head.
    mark: String,
    summary: Option<ImageSummary>,
}

impl Index {
    /// Every image that has a version, by name.
    pub fn images(&self) -> Result<Vec<ImageSummary>, RegistryError> {
        let names = self.registry().names()?;
        let summaries = names.iter().map(|image| self.image(image)).filter_map(Result::transpose);
        summaries.collect()
    }

    /// One image in short, if it has a version.
    pub fn image(&self, image: &ImageName) -> Result<Option<ImageSummary>, RegistryError> {
        let known = self.with(|database| database.line::<Row>(About::Summary, image.as_str())).flatten();
        if let Some(known) = known
            && self.registry().mark(image)?.as_ref() == Some(&known.mark)
        {
            return Ok(known.summary);
        }
        let (summary, mark) = self.registry().summary(image)?;
        if let Some(mark) = mark {
            let row = Row { mark, summary: summary.clone() };
            self.with(|database| database.put_line(About::Summary, image.as_str(), &row));
        }
        Ok(summary)
    }
}
