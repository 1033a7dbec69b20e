from .autoencoder_identity import IdentityAutoencoder
from .dit_ddm import DDMDiTTransformer2DModel
from .dual_output import DDMUNet2DOutput
from .unet_2d_condition_ddm import DDMUNet2DConditionModel
from .unet_2d_ddm import DDMUNet2DModel
