from .dual_output import DDMUNet2DOutput
from .unet_2d_ddm import DDMUNet2DModel
