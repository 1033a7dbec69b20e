from .unet_2d_ddm import DDMUNet2DModel, DDMUNet2DOutput
