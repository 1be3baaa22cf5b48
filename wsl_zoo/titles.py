"""How metrics are called and shown in tables and plots."""

from wsl_zoo.plots import percent

TITLES = {
    "acc": "accuracy",
    "balanced_acc": "balanced accuracy",
    "top5_acc": "top-5 accuracy",
    "mae": "mean absolute error, ranks",
    "soi": "SOI around the prediction",
    "soi_label": "SOI around the label",
    "loss": "loss",
    "auc": "AUC, mean of the horizons",
    "auc_ipcw": "AUC (IPCW), mean of the horizons",
    "pauc10": "partial AUC up to a false positive rate of 0.1",
    "c_index": "concordance (Harrell)",
    "c_index_ipcw": "concordance (Uno)",
    "bce": "weighted cross-entropy",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "nrmse": "NRMSE",
    "roi_psnr": "PSNR of regions, dB",
    "roi_ssim": "SSIM of regions",
    "roi_nrmse": "NRMSE of regions",
    "bias": "bias of predictions (0: every class as often, 100: one class)",
    "pxap": "PxAP",
    "prevalence": "prevalence (PxAP of a constant map)",
    "peak_iou": "peak IoU",
    "dice": "Dice (validation threshold)",
    "dice_bg": "background Dice (validation threshold)",
    "image_dice": "Dice per image (validation threshold)",
    "image_dice_auc": "area under the learning curve of Dice per image",
    "image_dice_present": "Dice per image with a region (validation threshold)",
    "image_dice_bg": "background Dice per image (validation threshold)",
    "dice_oracle": "Dice (best threshold)",
    "dice_bg_oracle": "background Dice (best threshold)",
    "maxboxacc": "MaxBoxAcc",
    "maxboxacc_v2": "MaxBoxAccV2",
    "boxacc": "BoxAcc (validation threshold)",
    "boxacc_v2": "BoxAccV2 (validation threshold)",
    "corloc_oracle": "CorLoc (best threshold)",
    "corloc_class_oracle": "CorLoc (best threshold of each class)",
    "corloc": "CorLoc (validation threshold)",
    "top1_loc": "top-1 localisation (validation threshold)",
    "top5_loc": "top-5 localisation (validation threshold)",
    "top1_loc_oracle": "top-1 localisation (best threshold)",
    "top5_loc_oracle": "top-5 localisation (best threshold)",
}


NUMBERS = {"mae": 3, "loss": 3, "bce": 3, "psnr": 2, "ssim": 4, "nrmse": 4}
"""Metrics that are shown as they are, not in percent, and with how many decimals."""


def shown(metric: str, value: float) -> str:
    """Format a value: a fraction in percent, others as they are."""
    decimals = NUMBERS.get(metric.removeprefix("roi_"))
    return percent(value) if decimals is None else f"{value:.{decimals}f}"


def horizon_of(metric: str) -> float | None:
    """Return the horizon whose AUC a metric is, as `auc_2.5`; None: it is another one."""
    name, _, end = metric.partition("_")
    try:
        return float(end) if name == "auc" else None
    except ValueError:
        return None


def order_of(metric: str) -> float:
    """Return the place of a metric in a table; AUC of horizons come before their mean."""
    names = list(TITLES)
    if horizon_of(metric) is not None:
        return names.index("auc") - 0.5
    return names.index(metric) if metric in TITLES else len(names)


def title_of(metric: str) -> str:
    """Return the heading of a metric."""
    if horizon_of(metric) is not None:
        return f"AUC at horizon {metric.removeprefix('auc_')}"
    return TITLES.get(metric, metric.replace("_", " "))
